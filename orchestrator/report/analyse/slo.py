"""How requests met the limits of ``slo``: from recorded latencies, for any limits.

``task=serving`` records a series ``answered`` with 1 or 0 for each request that was due, and for
each answered one, in the same order, its latencies and how many tokens it has (of one token alone
there is no TPOT). Of a task without requests each repetition counts as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.attempt import AttemptReport
from orchestrator.measure.metric import Absent, MetricSpec, Samples
from orchestrator.report.analyse.cell import Cell

ATTAINMENT = MetricSpec(
    "slo_attainment",
    "1",
    "higher",
    title="met the limits",
    meaning="share of requests within every limit of slo",
)
GOODPUT = MetricSpec(
    "goodput_per_s", "1/s", "higher", title="goodput", meaning="requests within every limit of slo"
)
#: The phase of the measured window.
_WINDOW = "serving"
_EACH_SIDE = 0.025


def used_limits(report: AttemptReport, limits: Mapping[str, float]) -> dict[str, list[float]] | str:
    """Of each limit, how much of it each request used, in the order in which they were due.

    Parameters
    ----------
    limits : mapping
        Seconds by ``ttft_s``, ``tpot_s`` and ``e2e_s``.

    Returns
    -------
    dict of str to list of float, or str
        At most 1 is met; infinite of a request that was not answered; 0 of one that the limit does
        not apply to. Or a line why it is not known.
    """
    answered = report.metrics.get("answered")
    if not isinstance(answered, Samples):
        return _of_repetitions(report, limits)
    series = {name: _values(report, name) for name in limits}
    tokens = _values(report, "request_new_tokens")
    found: dict[str, list[float]] = {name: [] for name in limits}
    for was in answered.values:
        several = bool(was) and next(tokens) > 1
        for name, limit in limits.items():
            if not was:
                found[name].append(math.inf)
            elif name == "tpot_s" and not several:
                found[name].append(0.0)
            else:
                found[name].append(next(series[name]) / limit)
    return found


def _of_repetitions(
    report: AttemptReport, limits: Mapping[str, float]
) -> dict[str, list[float]] | str:
    found = {}
    for name, limit in limits.items():
        metric = report.metrics.get(name)
        if not isinstance(metric, Samples):
            return metric.reason if isinstance(metric, Absent) else "no requests were recorded"
        found[name] = [value / limit for value in metric.values]
    if len({len(used) for used in found.values()}) > 1:
        return "repetitions have latencies of different numbers"
    return found


def worst_uses(report: AttemptReport, limits: Mapping[str, float]) -> list[float]:
    """Of each request that was due, how much it used of the limit that it used most of.

    Infinite for all where the queue grew and there are no latencies; empty without requests.
    """
    used = used_limits(report, limits)
    if isinstance(used, str):
        return [math.inf] * int(report.facts.get("requests", {}).get("due", 0))
    return [max(each) for each in zip(*used.values(), strict=True)]


def slo_cells(
    attempts: Sequence[AttemptReport], limits: Mapping[str, float], target: float
) -> dict[str, Cell]:
    """Attainment and goodput over a trial's attempts, with 95 % intervals.

    Parameters
    ----------
    target : float
        The attainment that is asked for.
    """
    from orchestrator.statistics.attainment import attainment

    reasons = [used for r in attempts if isinstance(used := used_limits(r, limits), str)]
    # Those of an attempt whose queue grew are missed: without them the rest would look better.
    worst = [uses for report in attempts if (uses := worst_uses(report, limits))]
    length_s = sum(
        ((p.end_ns or p.begin_ns) - p.begin_ns) / 1e9
        for report in attempts
        for p in report.phases
        if p.name == _WINDOW
    )
    if len(reasons) == len(attempts) or not worst:
        reason = reasons[-1] if reasons else "no requests were recorded"
        return {spec.name: Cell(spec, reason=reason) for spec in (ATTAINMENT, GOODPUT)}
    found = attainment(worst, target)
    low, high = found.bounds(_EACH_SIDE)
    n = found.requests
    share = Cell(ATTAINMENT, found.share, min(low, found.share), max(high, found.share), n)
    if length_s <= 0:
        return {ATTAINMENT.name: share, GOODPUT.name: Cell(GOODPUT, reason="no window")}
    rate = n / length_s
    ends = (found.share, share.ci_low or 0.0, share.ci_high or 0.0)
    return {
        ATTAINMENT.name: share,
        GOODPUT.name: Cell(GOODPUT, rate * ends[0], rate * ends[1], rate * ends[2], n),
    }


def _values(report: AttemptReport, name: str) -> Iterator[float]:
    metric = report.metrics.get(name)
    return iter(metric.values if isinstance(metric, Samples) else ())
