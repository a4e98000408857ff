"""Figures of a whole attempt that need telemetry: energy per token, peaks of memory."""

from __future__ import annotations

from orchestrator.attempt import AttemptReport
from orchestrator.measure import derive
from orchestrator.measure.metric import ATTEMPT, Absent, Metric, Samples, Value

_NAME, _UNIT = "joules_per_token", "J/token"
#: The phase of the measured window of a load.
SERVING = "serving"


def derived(report: AttemptReport) -> dict[str, Metric]:
    """Metrics that docs/protocol.md names and neither the task nor a sampler has alone. Pure."""
    return {**_memory(report), **_joules_per_token(report), **_joules_under_load(report)}


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
    ``decode_tokens_per_s`` (of the batch) times the time decoding took (``e2e_s - ttft_s``),
    repetition by repetition. The first token of a sequence belongs to the prefill. Intervals are
    not counted: tokens that came together have one between them.
    """
    found = [report.metrics.get(name) for name in ("decode_tokens_per_s", "e2e_s", "ttft_s")]
    rates, wholes_s, firsts_s = (m.values if isinstance(m, Samples) else () for m in found)
    if not rates or not len(rates) == len(wholes_s) == len(firsts_s):
        return {}
    times = zip(rates, wholes_s, firsts_s, strict=True)
    tokens = round(sum(rate * (whole_s - first_s) for rate, whole_s, first_s in times))
    energy = _energy_of("decode", report)
    joules = derive.joules_per_token(energy.value if isinstance(energy, Value) else None, tokens)
    if joules is not None:
        return {_NAME: Value(_NAME, _UNIT, joules)}
    reason = energy.reason if isinstance(energy, Absent) else "no energy of a decode phase"
    return {_NAME: Absent(_NAME, _UNIT, reason)}


def _joules_under_load(report: AttemptReport) -> dict[str, Metric]:
    """Energy of a served load's window over the tokens and the requests that ended in it."""
    length_s = sum(((p.end_ns or 0) - p.begin_ns) / 1e9 for p in report.phases if p.name == SERVING)
    energy = _energy_of(SERVING, report)
    found: dict[str, Metric] = {}
    for name, unit, rate_name in (
        (_NAME, _UNIT, "output_tokens_per_s"),
        ("joules_per_request", "J", "request_rate_per_s"),
    ):
        rate = report.metrics.get(rate_name)
        if not isinstance(rate, Value) or rate.value <= 0 or length_s <= 0:
            continue
        if isinstance(energy, Value):
            found[name] = Value(name, unit, energy.value / (rate.value * length_s))
        else:
            reason = energy.reason if isinstance(energy, Absent) else "no energy of the load"
            found[name] = Absent(name, unit, reason)
    return found


def _energy_of(phase: str, report: AttemptReport) -> Metric | None:
    """Of the GPUs, or of the CPU packages where the attempt owns none.

    A package's energy is that of all its cores: what else the machine does counts too.
    """
    ours = report.telemetry.get(f"{phase}.energy_j")
    if isinstance(ours, Value) or (report.slot is not None and report.slot.gpus):
        return ours
    return report.telemetry.get(f"{phase}.rapl_energy_j") or ours
