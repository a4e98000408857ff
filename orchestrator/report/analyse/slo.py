"""Which requests of a load met every limit of ``slo``: from recorded latencies, for any limit.

``task=serving`` records a series ``answered`` with 1 or 0 for each request that was due, and for
each answered one, in the same order, its latencies and how many tokens it has (of one token alone
there is no TPOT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.attempt import AttemptReport
from orchestrator.measure.metric import Absent, Samples


def missed_limits(
    report: AttemptReport, limits: Mapping[str, float]
) -> list[tuple[str, ...]] | str:
    """The limits that each request missed, in the order in which they were due; or why not known.

    Parameters
    ----------
    limits : mapping
        Seconds by ``ttft_s``, ``tpot_s`` and ``e2e_s``.

    Returns
    -------
    list of tuple of str, or str
        Empty for a request that met them all; all of them for one that was not answered.
    """
    answered = report.metrics.get("answered")
    if not isinstance(answered, Samples):
        latency = report.metrics.get("ttft_s")
        return latency.reason if isinstance(latency, Absent) else "no requests were recorded"
    series = {name: _values(report, name) for name in limits}
    tokens = _values(report, "request_new_tokens")
    found: list[tuple[str, ...]] = []
    for was in answered.values:
        if not was:
            found.append(tuple(limits))
            continue
        several = next(tokens) > 1
        took = {n: next(v) for n, v in series.items() if several or n != "tpot_s"}
        found.append(tuple(n for n, value in took.items() if value > limits[n]))
    return found


def _values(report: AttemptReport, name: str) -> Iterator[float]:
    metric = report.metrics.get(name)
    return iter(metric.values if isinstance(metric, Samples) else ())
