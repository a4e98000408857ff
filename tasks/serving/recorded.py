"""What the answers of a load add up to, as metrics and facts of an attempt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from orchestrator.engines.port import Work
from orchestrator.measure import InputError, MetricSpec, Recorder
from orchestrator.tasks.serving import window
from orchestrator.tasks.serving.orders import OK, Answer, Load

#: A queue that grows by more than this share of what comes has no latency.
SATURATED = 0.1
# What a page shows.
_MOST_FAILURES, _MOST_SLOWEST, _MOST_POINTS = 5, 20, 300

METRICS = (
    MetricSpec("request_rate_per_s", "1/s", "higher", title="requests", meaning="answered"),
    MetricSpec("output_tokens_per_s", "tokens/s", "higher", title="output"),
    MetricSpec("in_flight", "1", title="in flight", meaning="requests unanswered at a time"),
    MetricSpec("answered", "1", "higher", meaning="1 for each request that was, 0 for others"),
    MetricSpec("request_new_tokens", "1", title="output tokens of a request"),
    MetricSpec("error_ratio", "1", "lower", title="errors", meaning="share of requests"),
    MetricSpec("queue_growth", "1", "lower", meaning="share of requests that were left over"),
    MetricSpec("achieved_ratio", "1", "higher", title="achieved", meaning="sent of what was due"),
    MetricSpec("lag_p99_s", "s", "lower", title="lag p99", meaning="sending behind what was due"),
    MetricSpec("generator_stalled_ratio", "1", "lower", title="generator stalled"),
    MetricSpec("generator_cpu_ratio", "1", "lower", title="load of the generator's core"),
    MetricSpec("cached_tokens_ratio", "1", "higher", title="prompt tokens from a cache"),
)


def record(load: Load, recorder: Recorder, work: Work, *, open_loop: bool) -> None:
    """Latencies, rates, what the verdict asks, and facts.

    Parameters
    ----------
    work : Work
        What the server may answer from what it has read before.
    open_loop : bool
        Requests came whether or not earlier ones were answered.

    Raises
    ------
    InputError
        No request was answered; or users began again at the first, whose prompts may be in a cache.
    Mismatch
        A prompt came from a cache though nothing, or nothing of others, may be reused.
    """
    due = window.measured(load)
    answered = [answer for answer in due if answer.status == OK]
    if not answered:
        why = due[0].status if due else "none was due"
        raise InputError(f"none of {len(due)} requests was answered: {why}", where="task=serving")
    prompts = {(answer.conversation, answer.turn) for answer in load.answers}
    if (work.reuse or work.turns > 1) and len(prompts) < len(load.answers):
        raise InputError(
            f"{len(prompts)} prompts were not enough: the server may have had some in its cache",
            where="load.requests",
            fix="Give as many as are sent in load.duration_s, or more",
        )
    found = window.in_flight(load)
    growth = window.queue_growth(load, found) if open_loop else 0.0
    _latencies(due, recorder, saturated=growth > SATURATED)
    if work.turns > 1 and growth <= SATURATED:
        recorder.fact("ttft_by_turn", _by_turn(answered))
    requests_per_s, tokens_per_s = window.rates(load)
    recorder.value("request_rate_per_s", "1/s", requests_per_s)
    recorder.value("output_tokens_per_s", "tokens/s", tokens_per_s)
    recorder.value("in_flight", "1", sum(found) / len(found))
    recorder.value("error_ratio", "1", 1 - len(answered) / len(due))
    recorder.value("queue_growth", "1", growth)
    if open_loop:
        recorder.value("achieved_ratio", "1", window.achieved_ratio(load))
    lags_s = [answer.sent_s - answer.due_s for answer in due]
    recorder.value("lag_p99_s", "s", window.quantile(lags_s, 0.99))
    recorder.value("generator_stalled_ratio", "1", window.stalled_ratio(load))
    recorder.value("generator_cpu_ratio", "1", load.cpu_ratio)
    _facts(due, answered, recorder)
    _draw(due, answered, found, recorder)
    if not work.reuse:
        taken = taken_from_others(load.answers)
        recorder.engaged("prompt tokens from a cache under load", 0, max(taken, default=0))
    cached = [answer.cached_tokens for answer in answered if answer.cached_tokens is not None]
    if cached and (work.reuse or work.turns > 1):
        read = sum(answer.prompt_tokens or 0 for answer in answered)
        recorder.value("cached_tokens_ratio", "1", sum(cached) / read)


def taken_from_others(answers: Sequence[Answer]) -> list[int]:
    """Of each request, tokens from a cache beyond those of earlier turns of its conversation."""
    # A conversation that is held again has the same lengths.
    sequences = {
        (a.conversation, a.turn): (a.prompt_tokens or 0) + len(a.arrivals_s) for a in answers
    }
    return [
        max(0, a.cached_tokens - sequences.get((a.conversation, a.turn - 1), 0))
        for a in answers
        if a.cached_tokens is not None
    ]


def _by_turn(answered: Sequence[Answer]) -> list[tuple[int, float]]:
    """Median TTFT of each turn."""
    found: dict[int, list[float]] = {}
    for answer in answered:
        found.setdefault(answer.turn, []).append(window.request_of(answer).ttft_s)
    return [(turn, round(median(found[turn]), 6)) for turn in sorted(found)]


def _latencies(due: Sequence[Answer], recorder: Recorder, *, saturated: bool) -> None:
    if saturated:
        reason = "the queue grew all the time: a rate that cannot be sustained has no latency"
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            recorder.absent(name, "s", reason)
        return
    for batch in window.batches(due):
        requests = [window.request_of(answer) for answer in batch if answer.status == OK]
        counts = [len(answer.arrivals_s) for answer in batch if answer.status == OK]
        for name, unit, values in (
            ("ttft_s", "s", [request.ttft_s for request in requests]),
            ("tpot_s", "s", [request.tpot_s for request in requests if request.tpot_s is not None]),
            ("e2e_s", "s", [request.e2e_s for request in requests]),
            ("itl_s", "s", [gap for request in requests for gap in request.itl_s]),
            ("request_new_tokens", "1", counts),
            ("answered", "1", [answer.status == OK for answer in batch]),
        ):
            if values:
                recorder.samples(name, unit, values, together=True)


def _facts(due: Sequence[Answer], answered: Sequence[Answer], recorder: Recorder) -> None:
    failures = Counter(answer.status for answer in due if answer.status != OK)
    recorder.fact(
        "requests",
        {
            "due": len(due),
            "answered": len(answered),
            "failed": dict(failures.most_common(_MOST_FAILURES)),
            "shorter_than_asked": sum(len(a.arrivals_s) < a.asked_tokens for a in answered),
            "sent_again": sum(a.sent_again > 0 for a in due),
            "tokens_counted_by": sorted({answer.counted_by for answer in answered}),
        },
    )


def _draw(
    due: Sequence[Answer], answered: Sequence[Answer], found: Sequence[int], recorder: Recorder
) -> None:
    """Points of the queue, and the slowest requests part by part."""
    step = -(-len(due) // _MOST_POINTS)
    points = [[round(a.due_s, 3), count] for a, count in zip(due, found, strict=True)]
    recorder.fact("queue", points[::step])
    slowest = sorted(answered, key=lambda a: a.due_s - a.arrivals_s[-1])[:_MOST_SLOWEST]
    recorder.fact("slowest", [_parts(answer) for answer in slowest])


def _parts(answer: Answer) -> dict[str, Any]:
    first_s, last_s = answer.arrivals_s[0], answer.arrivals_s[-1]
    return {
        "due_s": round(answer.due_s, 4),
        "parts_s": {
            "until it was sent": round(answer.sent_s - answer.due_s, 6),
            "to the first token": round(first_s - answer.sent_s, 6),
            "to the last token": round(last_s - first_s, 6),
        },
    }
