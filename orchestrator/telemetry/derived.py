"""Figures that need both what a task measured and what telemetry saw: energy per token."""

from __future__ import annotations

from statistics import median

from orchestrator.attempt import AttemptReport
from orchestrator.measure.metric import Absent, Metric, Samples, Value

_NAME, _UNIT = "joules_per_token", "J/token"


def derived(report: AttemptReport) -> dict[str, Metric]:
    """``joules_per_token`` of a report whose task decoded tokens; empty for others. Pure.

    Energy of the measured ``decode`` phases over the tokens of the whole batch decoded in them:
    the intervals recorded (``itl_s``) times the batch, which is ``decode_tokens_per_s`` (of the
    batch) times ``tpot_s`` (of one sequence). The first token of a sequence belongs to the prefill.
    """
    found = [report.metrics.get(name) for name in ("itl_s", "decode_tokens_per_s", "tpot_s")]
    intervals, rate, pace = (m if isinstance(m, Samples) and m.values else None for m in found)
    if intervals is None or rate is None or pace is None:
        return {}
    batch = round(median(rate.values) * median(pace.values))
    tokens = len(intervals.values) * batch
    energy = report.telemetry.get("decode.energy_j")
    if isinstance(energy, Value) and tokens > 0:
        return {_NAME: Value(_NAME, _UNIT, energy.value / tokens)}
    reason = energy.reason if isinstance(energy, Absent) else "no energy of a decode phase"
    return {_NAME: Absent(_NAME, _UNIT, reason)}
