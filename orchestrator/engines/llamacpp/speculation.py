"""What a draft brings: that tokens stay the model's own, and the speed-up, predicted and measured.

Each step the draft proposes d tokens, the model checks all of them and one more at once, and keeps
those up to the first that it would not have chosen. llama.cpp's draft then reads what was checked,
all at once, though it has seen most of it::

    predicted = (1 + a d) / (c d + r + v)

    a   acceptance: share of the proposed tokens that were kept
    c   a step of the draft          )
    r   its reading of d + 1 tokens  ) over a step of the model
    v   the model's of as many       )

Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding" (2023),
theorem 3.8, with figures measured that they assume: their numerator is what 1 + a d comes to where
every token is accepted independently, they take v for 1, which a CPU is far from, and r for 0. Both
are timed as a prompt is read, with logits of its last token only: the prediction is a little high.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from orchestrator.engines.llamacpp.same_tokens import judge_tokens
from orchestrator.engines.llamacpp.server import Completion, LlamaServer, Setting
from orchestrator.measure import Clock, MetricSpec, Recorder

SPECS = (
    MetricSpec(
        "draft_acceptance", "1", "higher", meaning="share of the draft's tokens that were kept"
    ),
    MetricSpec("draft_speedup", "1", "higher", meaning="TPOT without the draft over that with it"),
    MetricSpec(
        "predicted_draft_speedup", "1", title="predicted speedup", meaning="from acceptance"
    ),
)
# Runs of each kind, in turn: the machine is the same for all of them.
_ROUNDS = 7


def prove_speculation(
    server: LlamaServer,
    setting: Setting,
    prompt: Sequence[int],
    new_tokens: int,
    recorder: Recorder,
) -> None:
    """Record what ``server``, which has the draft, does other than one without.

    Raises
    ------
    Mismatch
        If it generates other tokens, or drafts none.
    """
    recorder.declare(SPECS)
    assert setting.draft is not None
    alone, clock = replace(setting, draft=None), recorder.clock
    with (
        closing(LlamaServer(alone)) as plain,
        closing(LlamaServer(replace(alone, file=setting.draft))) as draft,
    ):
        found = judge_tokens(plain, [prompt], server.tokens([prompt], new_tokens))
        found.record(recorder, "tokens with a draft", "those without it")
        drafted = accepted = 0
        times: list[tuple[float, ...]] = []
        for _ in range(_ROUNDS):
            made = _after(server, prompt, 1, new_tokens, clock)
            drafted, accepted = drafted + made.drafted, accepted + made.accepted
            ours, theirs = (_after(each, prompt, 1, new_tokens, clock) for each in (plain, draft))
            check, read = (
                _after(each, prompt, setting.draft_tokens + 1, 1, clock) for each in (plain, draft)
            )
            step_ns = _tpot_ns(ours)
            others = (_tpot_ns(made), _tpot_ns(theirs), _ttft_ns(read), _ttft_ns(check))
            times.append(tuple(each / step_ns for each in others))
    recorder.engaged("tokens drafted", "some", drafted, ok=drafted > 0)
    steps = _ROUNDS * (new_tokens - 1) - accepted
    a_step, kept = drafted / steps, 1 + accepted / steps
    recorder.value("draft_acceptance", "1", accepted / drafted)
    recorder.value("draft_speedup", "1", statistics.median(1 / made for made, *_ in times))
    predicted = statistics.median(kept / (c * a_step + r + v) for _, c, r, v in times)
    recorder.value("predicted_draft_speedup", "1", predicted)
    _, step, read_all, check_all = (statistics.median(each) for each in zip(*times, strict=True))
    recorder.fact(
        "speculation",
        {
            "drafted_a_step": a_step,
            "tokens_a_step": kept,
            "draft_over_step": step,
            "draft_reads_over_step": read_all,
            "check_over_step": check_all,
        },
    )


def _after(
    server: LlamaServer, prompt: Sequence[int], last: int, new_tokens: int, clock: Clock
) -> Completion:
    """The ``last`` ids of ``prompt`` read at once, all others in the cache, and what follows."""
    depth = len(prompt) - last
    server.fill([prompt], depth)
    (made,) = server.complete([prompt], new_tokens, clock, depth=depth)
    return made


def _ttft_ns(made: Completion) -> float:
    return made.arrivals_ns[0] - made.begin_ns


def _tpot_ns(made: Completion) -> float:
    return (made.arrivals_ns[-1] - made.arrivals_ns[0]) / (len(made.arrivals_ns) - 1)
