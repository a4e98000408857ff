"""Figures of a whole attempt that need telemetry: energy per token, peaks of memory."""

from __future__ import annotations

from statistics import median

from orchestrator.attempt import AttemptReport
from orchestrator.measure import derive
from orchestrator.measure.metric import Absent, Metric, Samples, Value
from orchestrator.telemetry.window import ATTEMPT

_NAME, _UNIT = "joules_per_token", "J/token"


def derived(report: AttemptReport) -> dict[str, Metric]:
    """Metrics that PROTOCOL names and neither the task nor a sampler has alone. Pure."""
    return {**_memory(report), **_joules_per_token(report)}


def _memory(report: AttemptReport) -> dict[str, Metric]:
    """``process_memory_bytes`` and ``device_memory_bytes``: peaks over the whole attempt.

    On a GPU NVML's, per process and of the whole device. On the CPU the control group's stands for
    the device's; the process's own the measured process tells itself.
    """
    if report.slot is None or not report.telemetry:
        return {}
    sources = {"device_memory_bytes": "cgroup_memory_bytes"}
    if report.slot.gpus:
        sources = {name: name for name in ("device_memory_bytes", "process_memory_bytes")}
    found: dict[str, Metric] = {}
    for name, source in sources.items():
        seen = report.telemetry.get(f"{ATTEMPT}.{source}")
        if isinstance(seen, Value):
            found[name] = Value(name, "bytes", seen.value)
        else:
            reason = seen.reason if isinstance(seen, Absent) else "not sampled"
            found[name] = Absent(name, "bytes", reason)
    return found


def _joules_per_token(report: AttemptReport) -> dict[str, Metric]:
    """Energy per decoded token; empty where the task decoded none.

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
    joules = derive.joules_per_token(energy.value if isinstance(energy, Value) else None, tokens)
    if joules is not None:
        return {_NAME: Value(_NAME, _UNIT, joules)}
    reason = energy.reason if isinstance(energy, Absent) else "no energy of a decode phase"
    return {_NAME: Absent(_NAME, _UNIT, reason)}
