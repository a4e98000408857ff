"""A decoder larger than its memory, run layer by layer from disk with a key-value cache.

::

    prepare, store       download or conversion; the files to stream from       not part of load_s
    load                 resident parts read, slots allocated, prefetch begins  load_s
    first_call           first_call_s: one prefill
    warmup, prefill, decode ...    as in task=inference; each decode step's time by category
    (between sequences)            the disk alone, for the bound
    prove                          one prefill with nothing read ahead
    calibrate, bandwidth           afterwards: computing alone, the bus alone

Tokens are those of the resident model.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from orchestrator.engines import transformers as loading
from orchestrator.engines.digest import ids_digest
from orchestrator.engines.proof import FAILED, PROVEN, Finding, judge_finite
from orchestrator.engines.transformers import tokens
from orchestrator.engines.transformers.generation import GreedyGenerator, SequenceTiming
from orchestrator.measure import (
    ConfigError,
    Identity,
    MetricSpec,
    Recorder,
    Repetition,
    Task,
    derive,
    first_call,
    repeat,
    timed,
)
from orchestrator.measure.figures import Bars, Breakdown
from orchestrator.measure.options import options_of
from orchestrator.tasks.streaming.bandwidth import h2d_bytes_per_s
from orchestrator.tasks.streaming.intervals import (
    CATEGORIES,
    UNATTRIBUTED,
    CuttingClock,
    best_rate,
    best_step_s,
    bottleneck,
    overlap_efficiency,
)
from orchestrator.tasks.streaming.layout import largest_bytes
from orchestrator.tasks.streaming.options import StreamingConfig
from orchestrator.tasks.streaming.runner import ARCHITECTURES
from orchestrator.tasks.streaming.session import StreamingSession
from orchestrator.tasks.streaming.streaming_expected import expect_streaming

if TYPE_CHECKING:
    import torch

#: New tokens of a sequence, of each row.
Rows: TypeAlias = tuple[tuple[int, ...], ...]

# Of wall time: how far the booked categories may be from what the clock says.
_TOLERANCE = 0.02
_CALIBRATION_STEPS = 5
# Of the logits' spread. The same kernels give the same numbers, but for sums in another order.
_MOST_ERROR = 1e-2


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    options = identity["task"]
    model = identity["model"]
    kind = (model.get("architecture") or {}).get("model_type")
    if model["source"] == "random" and kind and kind not in ARCHITECTURES:
        raise ConfigError(
            f"streaming does not know the architecture {kind!r}",
            where="model.architecture",
            fix=f"Known: {', '.join(ARCHITECTURES)}",
        )
    if (scheme := identity["quant"]["scheme"]) not in ("none", "nf4", "fp4"):
        return f"streaming has no {scheme}: none, nf4 or fp4"
    if options["pinned"] and identity["device"]["kind"] != "cuda":
        return "pinned memory needs a CUDA device"
    if options["direct"] and options["page_cache"] == "warm":
        return "direct reads leave a warm page cache aside: task.direct=false"
    if options["transfer"] == "async" and options["workers"] > options["depth"]:
        return f"{options['workers']} workers need a depth of at least as much"
    length = options["prompt_tokens"] + options["new_tokens"]
    return (
        loading.check_model(identity)
        or loading.check_attention(identity, options["attention"])
        or loading.check_length(model, length, "prompt_tokens + new_tokens")
    )


def run(identity: Identity, recorder: Recorder) -> None:
    """Measure one trial; see the module for its phases."""
    import torch

    options = options_of(StreamingConfig, identity)
    prepared = loading.prepare(identity, recorder)
    length = options.prompt_tokens + options.new_tokens
    prepared.require_context(
        length,
        "prompt_tokens + new_tokens",
        fix="Shorten task.prompt_tokens or task.new_tokens",
    )
    with torch.inference_mode():
        session = StreamingSession(prepared, identity, options, recorder)
        try:
            _measure(session, prepared, options, identity, recorder)
        finally:
            session.close()


def _measure(
    session: StreamingSession,
    prepared: loading.Prepared,
    options: StreamingConfig,
    identity: Identity,
    recorder: Recorder,
) -> None:
    with recorder.phase("load", measured=False), timed(recorder.clock) as span:
        session.load()
    recorder.value("load_s", "s", span.seconds)
    session.prove(recorder)
    recorder.value("weights_bytes", "bytes", session.weights_bytes)
    for stage, nbytes in session.stage_bytes().items():
        recorder.value(f"{stage}_bytes", "bytes", nbytes)

    ledger = session.ledger
    generator = _generator(session, recorder)
    prompt = tokens.prompt(
        prepared, identity["seed"], options.batch_size, options.prompt_tokens
    ).to(session.device)
    with recorder.phase("first_call", measured=False), first_call(recorder):
        generator.prefill(prompt)
    session.budget.check()

    outputs: list[Rows] = []  # of each sequence, warm-up too
    tpots_s: list[float] = []
    shortest_s = math.inf  # computing of a step, waits left out
    breakdown: list[dict[str, Any]] = []  # of each repetition
    for repetition in repeat(recorder, identity["protocol"], watch="tpot_s"):
        session.settle_page_cache()
        ledger.reset()
        with repetition.phases(recorder, recorder.phase) as phase:
            timing, ids = generator.sequence(prompt, options.new_tokens, phase)
        session.budget.check()
        session.check_page_cache(recorder)
        steps = ledger.steps()
        _add(repetition, timing, steps, session, options)
        outputs.append(tokens.rows_of(ids))
        if not repetition.warmup:
            tpots_s.append(repetition_tpot_s(timing))
            shortest_s = min(shortest_s, _compute_s(steps))
            breakdown.append(
                {"steps": ledger.step_units(), "background": ledger.background_units()}
            )
            _assert_adds_up(recorder, timing, steps, final=False)
            session.pipeline.settle()
            session.disk.round()
    _assert_adds_up(recorder, timing, steps, final=True)
    digests = {ids_digest([*chain.from_iterable(rows)])[:16] for rows in outputs}
    recorder.fact("output_digests", sorted(digests))
    recorder.artifact("streaming.json").write_text(json.dumps(breakdown))
    if session.budget.peak_bytes is None:
        recorder.absent("peak_memory_bytes", "bytes", session.budget.absent_reason)
    else:
        recorder.value("peak_memory_bytes", "bytes", session.budget.peak_bytes)
    recorder.fact("bottleneck", bottleneck(session.busy_s()))
    _prove(session, generator, prompt, outputs, recorder)
    _bound(session, prompt, tpots_s, shortest_s, options, recorder)


def repetition_tpot_s(timing: SequenceTiming) -> float:
    """Mean decode step of a sequence that has at least one, seconds."""
    tpot_s = derive.tpot_s(timing.intervals_s)
    assert tpot_s is not None  # new_tokens >= 2
    return tpot_s


def _prove(
    session: StreamingSession,
    generator: GreedyGenerator,
    prompt: torch.Tensor,
    outputs: Sequence[Rows],
    recorder: Recorder,
) -> None:
    """Logits are numbers, and those of layers read one by one: no slot was filled too early."""
    judge_finite(generator.finite).record(recorder, "finite logits", "numbers, of all sequences")
    ahead = generator.prefill_logits
    assert ahead is not None
    with recorder.phase("prove", measured=False):
        session.read_on_demand()
        session.ledger.reset()
        _, alone = generator.begin(prompt)  # no more: it reads the whole model
    error = float((ahead - alone).float().square().mean().sqrt())
    others = sum(rows != outputs[0] for rows in outputs)
    # An error that is no number fails, too.
    same = error <= _MOST_ERROR * float(alone.float().std()) and not others
    got = f"off by {error:.2g}, other tokens in {others} of {len(outputs)} sequences"
    found = Finding(PROVEN if same else FAILED, got)
    found.record(recorder, "streamed weights", "the logits of layers read one by one")


def _generator(session: StreamingSession, recorder: Recorder) -> GreedyGenerator:
    from transformers import DynamicCache

    return GreedyGenerator(
        session.streamed,
        CuttingClock(recorder.clock, session.ledger),
        lambda: DynamicCache(config=session.config),
        prefill_options={"logits_to_keep": 1},
    )


def _add(
    repetition: Repetition,
    timing: SequenceTiming,
    steps: list[dict[str, float]],
    session: StreamingSession,
    options: StreamingConfig,
) -> None:
    count = len(steps)
    tpot_s = repetition_tpot_s(timing)
    repetition.add("ttft_s", "s", timing.ttft_s)
    repetition.extend("itl_s", "s", timing.intervals_s)
    repetition.add("tpot_s", "s", tpot_s)
    repetition.add("decode_tokens_per_s", "tokens/s", options.batch_size / tpot_s)
    repetition.add("e2e_s", "s", derive.e2e_s(timing.ttft_s, timing.intervals_s))
    for category in (*CATEGORIES, UNATTRIBUTED):
        if category in ("pin", "h2d") and session.device.type != "cuda":
            continue  # no such stage: absent, not zero
        mean_s = sum(step[category] for step in steps) / count
        repetition.add(f"step_{category}_s", "s", mean_s)
    busy_s = session.busy_s()
    for stage, seconds in busy_s.items():
        repetition.add(f"{stage}_busy_s", "s", seconds / count)
    wall_s = sum(timing.intervals_s)
    repetition.add("disk_bytes_per_s", "bytes/s", session.step_bytes * count / wall_s)
    if (efficiency := overlap_efficiency(busy_s, wall_s)) is not None:
        repetition.add("overlap_efficiency", "1", efficiency)


def _assert_adds_up(
    recorder: Recorder, timing: SequenceTiming, steps: list[dict[str, float]], *, final: bool
) -> None:
    """Booked intervals and the gaps between them are the wall that the generator's clock saw."""
    wall_s = sum(timing.intervals_s)
    booked_s = sum(sum(step.values()) for step in steps)
    off = abs(booked_s - wall_s) / wall_s
    if final or off > _TOLERANCE:
        recorder.engaged(
            "foreground categories",
            f"wall time within {_TOLERANCE:.0%}",
            f"off by {off:.3%}",
            ok=off <= _TOLERANCE,
        )


def _compute_s(steps: Sequence[Mapping[str, float]]) -> float:
    """Of the step that computed for the shortest time."""
    return min(step["create"] + step["forward"] + step["free"] for step in steps)


def _bound(
    session: StreamingSession,
    prompt: torch.Tensor,
    tpots_s: Sequence[float],
    shortest_s: float,
    options: StreamingConfig,
    recorder: Recorder,
) -> None:
    """Compute alone and each path alone; what a step could take at best, and took."""
    tpot_s = statistics.median(tpots_s)
    ledger = session.ledger
    with recorder.phase("calibrate", measured=False):
        session.hold_weights()
        ledger.reset()
        generator = _generator(session, recorder)
        generator.sequence(prompt, _CALIBRATION_STEPS + 1)
        steps = ledger.steps()
    compute_s = min(_compute_s(steps), shortest_s)
    recorder.value("compute_bound_s", "s", compute_s)
    bandwidth_of = {"disk": session.disk.bytes_per_s}
    if session.device.type == "cuda":
        with recorder.phase("bandwidth", measured=False):
            bandwidth_of["h2d"] = h2d_bytes_per_s(
                largest_bytes(session.ring), session.device, pinned=options.pinned
            )
    bandwidth_of = {
        stage: best_rate(rate, session.step_bytes, tpots_s) for stage, rate in bandwidth_of.items()
    }
    for stage, rate in bandwidth_of.items():
        recorder.value(f"{stage}_bandwidth_bytes_per_s", "bytes/s", rate)
        recorder.value(f"{stage}_achieved_share", "1", session.step_bytes / tpot_s / rate)
    bytes_of = dict.fromkeys(bandwidth_of, float(session.step_bytes))
    bound_s = best_step_s(bytes_of, bandwidth_of, compute_s)
    recorder.value("bound_s", "s", bound_s)
    recorder.value("tpot_over_bound", "1", tpot_s / bound_s)


TASK = Task(
    name="streaming",
    config=StreamingConfig,
    run=run,
    check=check,
    preload=loading.PRELOAD,
    metrics=(
        MetricSpec(
            "tpot_over_bound", "1", "lower", meaning="TPOT over the best this machine allows"
        ),
        MetricSpec("overlap_efficiency", "1", "higher"),
        *(MetricSpec(f"{stage}_achieved_share", "1", "higher") for stage in ("disk", "h2d")),
    ),
    expect=expect_streaming,
    named=("bottleneck",),
    headline=(
        "tpot_s",
        "tpot_over_bound",
        "overlap_efficiency",
        "step_wait_s",
        "step_forward_s",
        "disk_busy_s",
        "compute_busy_s",
        "disk_bytes_per_s",
        "disk_bandwidth_bytes_per_s",
        "peak_memory_bytes",
    ),
    figures=(
        Bars("tpot_s"),
        Bars("tpot_over_bound"),
        Breakdown(tuple(f"step_{category}_s" for category in (*CATEGORIES, UNATTRIBUTED))),
    ),
)
