"""Says whether telemetry lets a measurement be believed: rules as data, applied to one report.

Pure. The rules and their limits come from ``conf/verdict/``; what each one looks at is here::

    invalid   GPU   thermal_slowdown hardware_slowdown power_brake
                    foreign_process sm_clock device_lost memory_before
              host  swap cgroup_throttling steal
    flagged   GPU   power_cap display      host  other_load
              samples  bimodal
    of a load           lag stalls generator_cpu achieved_rate errors, and flagged: saturated

    invalid     a rule of state ``invalid`` is broken
    unverified  no telemetry, or a rule of state ``invalid`` could not be checked
    flagged     a rule of state ``flagged`` is broken
    valid       everything was checked and nothing was found

How precise a median is (few samples, a wide interval) is no disturbance and none of its business.

Rules about clocks and other load say nothing of an attempt that timed nothing (a quality pass,
say): they change no perplexity. Nor does the SM clock of a GPU that was never busy.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.attempt import AttemptReport, RuleResult, Verdict
from orchestrator.errors import ConfigError
from orchestrator.measure.metric import ATTEMPT, MEASURED, Absent, Samples, Value
from orchestrator.telemetry.aggregate_gpu import NEVER_BUSY
from orchestrator.telemetry.window import Missing

_BIMODAL_AT_LEAST = 10
STATES = ("invalid", "flagged", "off")


Seen = float | str | Missing | None
# None: the rule does not apply to this attempt


@dataclass(frozen=True)
class Check:
    """What a rule looks at and when it is broken.

    Attributes
    ----------
    look : callable
        The report's value for this rule.
    says : str
        One line for a person, with ``{value}`` and ``{limit}``.
    broken : callable
        ``broken(value, limit)``.
    gpu : bool
        Applies only to attempts that own a GPU.
    unit : str
        ``bytes`` where value and limit are a size.
    """

    look: Callable[[AttemptReport], Seen]
    says: str
    broken: Callable[[Any, Any], bool] = operator.gt
    gpu: bool = False
    unit: str = ""


def judge(report: AttemptReport, rules: Mapping[str, Any]) -> Verdict:
    """Apply every rule to a report.

    Parameters
    ----------
    rules : mapping
        ``{name: {"state": "invalid"|"flagged"|"off", "limit": number}}``, or the whole ``verdict``
        configuration group that has them under ``rules``.

    Returns
    -------
    Verdict
        A :class:`RuleResult` for each rule that applies, with what was seen and the limit; state
        ``unknown`` and the reason where it could not be seen.

    Raises
    ------
    ConfigError
        If a rule has an unknown name or state, or no limit.
    """
    results, unchecked = [], False
    for name, state, limit in _rules(_chosen(rules)):
        check = CHECKS[name]
        if check.gpu and not (report.slot and report.slot.gpus):
            continue
        seen = check.look(report)
        if seen is None:
            continue
        if isinstance(seen, Missing):
            unchecked = unchecked or state == "invalid"
            results.append(RuleResult(name, "unknown", None, limit, seen.reason))
        elif check.broken(seen, limit):
            shown = {"value": _plain(seen, check.unit), "limit": _plain(limit, check.unit)}
            reason = check.says.format(**shown)
            results.append(RuleResult(name, state, seen, limit, reason))
        else:
            results.append(RuleResult(name, "pass", seen, limit))
    states = {r.state for r in results}
    if unchecked or not results or not report.telemetry:
        states.add("unverified")
    overall = next((s for s in ("invalid", "unverified", "flagged") if s in states), "valid")
    return Verdict(overall, tuple(results))


def check_rules(rules: Mapping[str, Any]) -> None:
    """:class:`ConfigError` for what :func:`judge` could not apply: before anything is measured."""
    for _ in _rules(_chosen(rules)):
        pass


def _chosen(rules: Mapping[str, Any]) -> Mapping[str, Any]:
    return rules.get("rules", rules) if isinstance(rules.get("rules", {}), Mapping) else rules


def limit_of(rules: Mapping[str, Any], name: str) -> Any:
    """The limit of one rule of the ``verdict`` group; None where the rule is off."""
    known = rules.get("rules") or {}
    return next(
        (limit for _, _, limit in _rules({k: v for k, v in known.items() if k == name})), None
    )


def _rules(rules: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for name, rule in rules.items():
        where = f"verdict.rules.{name}"
        if name not in CHECKS:
            fix = f"Known: {', '.join(CHECKS)}"
            raise ConfigError(f"unknown verdict rule {name!r}", where="verdict.rules", fix=fix)
        if not isinstance(rule, Mapping) or "limit" not in rule:
            fix = f"Write {where}.limit=NUMBER, or {where}.state=off"
            raise ConfigError("a rule needs a state and a limit", where=where, fix=fix)
        state = str(rule.get("state", "invalid"))
        if rule["limit"] is None or state in ("off", "False"):  # YAML reads a bare off as false
            continue
        if state not in STATES:
            raise ConfigError(f"state {state!r} is none of {', '.join(STATES)}", where=where)
        limit = rule["limit"]
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or math.isnan(limit):
            raise ConfigError(f"{limit!r} is no number", where=f"{where}.limit")
        yield name, state, limit


def _plain(value: object, unit: str) -> str:
    if not isinstance(value, (int, float)):
        return str(value)
    if unit != "bytes":
        return f"{value:.4g}"
    for prefix, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.0f} bytes"


def _aggregate(
    metric: str, *, whole_attempt: bool = False, timed: bool = False
) -> Callable[[AttemptReport], Seen]:
    """Value of a telemetry figure over the measured windows.

    ``whole_attempt``: where there are none, or a peak was not read in them, the figure of the whole
    attempt stands in. ``timed``: asked only of attempts that timed something.
    """

    def look(report: AttemptReport) -> Seen:
        if timed and _timed_nothing(report):
            return None
        found = report.telemetry.get(f"{MEASURED}.{metric}")
        if whole_attempt and not isinstance(found, Value):
            found = report.telemetry.get(f"{ATTEMPT}.{metric}", found)
        if isinstance(found, Value):
            return found.value
        return Missing(found.reason if isinstance(found, Absent) else "no telemetry")

    return look


def _timed_nothing(report: AttemptReport) -> bool:
    # An attempt without any phase was cut short, or its task tells none: that proves nothing.
    return bool(report.phases) and not any(phase.measured for phase in report.phases)


def _slowest_clock(report: AttemptReport) -> Seen:
    # Phase by phase: a union over all would hide a throttled decode behind a fast load.
    names = {p.name for p in report.phases if p.measured}
    found = [report.telemetry.get(f"{name}.sm_clock_ratio") for name in sorted(names)]
    ratios = [m.value for m in found if isinstance(m, Value)]
    if ratios:
        return min(ratios)
    seen = _aggregate("sm_clock_ratio", timed=True)(report)
    return None if seen == Missing(NEVER_BUSY) else seen


def _lost(report: AttemptReport) -> Seen:
    watched = report.facts.get("telemetry", {})
    lost, unopened = watched.get("lost"), watched.get("unopened")
    if not lost and (lost is None or unopened):
        return Missing(next(iter(unopened.values())) if unopened else "no telemetry")
    return "; ".join(f"{uuid}: {reason}" for uuid, reason in sorted(lost.items()))


def _memory_before(report: AttemptReport) -> Seen:
    watched = report.facts.get("telemetry", {})
    before, unopened = (
        watched.get("device_memory_before_bytes") or {},
        watched.get("unopened") or {},
    )
    gpus = report.slot.gpus if report.slot else ()
    # One of eight that was not read may be the one that somebody else fills.
    if unread := [uuid for uuid in gpus if uuid not in before]:
        why = f"memory of {unread[0]} was not read before the attempt"
        return Missing(unopened.get(unread[0], why))
    return float(max(before.values()))


def _bimodal(report: AttemptReport) -> Seen:
    samples = (m for m in report.metrics.values() if isinstance(m, Samples))
    watched = [m for m in samples if m.stop_reason and len(m.values) >= _BIMODAL_AT_LEAST]
    if not watched:
        return None
    from orchestrator.statistics.summary import summarise

    return float(sum(bool(summarise(m.values, resamples=100).bimodal) for m in watched))


def _measured(metric: str) -> Callable[[AttemptReport], Seen]:
    """What the task itself recorded; a rule of a load applies to no other task."""

    def look(report: AttemptReport) -> Seen:
        found = report.metrics.get(metric)
        return found.value if isinstance(found, Value) else None

    return look


def _in_phases(metric: str, says: str) -> Check:
    """Of a GPU's figure over the measured phases."""
    return Check(_aggregate(metric, timed=True), says, gpu=True)


def _at_all(metric: str, says: str, *, timed: bool = False, **more: Any) -> Check:
    """Of a figure that the whole attempt's stands in for."""
    return Check(_aggregate(metric, whole_attempt=True, timed=timed), says, **more)


CHECKS: dict[str, Check] = {
    "thermal_slowdown": _in_phases(
        "throttle_thermal_s",
        "clocks were cut for heat during {value} s of the measured phases (limit {limit} s)",
    ),
    "hardware_slowdown": _in_phases(
        "throttle_hardware_s",
        "hardware slowdown during {value} s of the measured phases (limit {limit} s)",
    ),
    "power_brake": _in_phases(
        "throttle_power_brake_s",
        "power brake during {value} s of the measured phases (limit {limit} s)",
    ),
    "foreign_process": _at_all(
        "foreign_processes",
        "{value} foreign processes on the attempt's GPU (limit {limit})",
        gpu=True,
    ),
    "sm_clock": Check(
        _slowest_clock,
        "SM clock at {value} of its allowed maximum while busy (limit {limit})",
        broken=operator.lt,
        gpu=True,
    ),
    "device_lost": Check(_lost, "{value}", broken=lambda value, limit: bool(value), gpu=True),
    "swap": _at_all(
        "swap_bytes",
        "{value} of the measured process were swapped out (limit {limit})",
        unit="bytes",
    ),
    "cgroup_throttling": _at_all(
        "cgroup_throttled_ratio",
        "the control group withheld a share of {value} of the cores (limit {limit})",
        timed=True,
    ),
    "steal": _at_all(
        "steal_ratio",
        "the hypervisor took a share of {value} of the cores (limit {limit})",
        timed=True,
    ),
    "power_cap": _in_phases(
        "throttle_power_cap_s",
        "clocks were cut for the power cap during {value} s of measured phases (limit {limit} s)",
    ),
    "memory_before": Check(
        _memory_before,
        "{value} of the GPU's memory were still in use before the attempt (limit {limit})",
        gpu=True,
        unit="bytes",
    ),
    "display": _at_all(
        "display_processes", "{value} processes draw on the attempt's GPU (limit {limit})", gpu=True
    ),
    "other_load": _at_all(
        "other_cpu_ratio",
        "others used a share of {value} of the attempt's cores (limit {limit})",
        timed=True,
    ),
    "lag": Check(
        _measured("lag_p99_s"),
        "1 of 100 requests was sent more than {value} s after it was due (limit {limit} s)",
    ),
    "stalls": Check(
        _measured("generator_stalled_ratio"),
        "the load generator stood still for a share of {value} of the time (limit {limit})",
    ),
    "generator_cpu": Check(
        _measured("generator_cpu_ratio"),
        "the load generator used a share of {value} of its core (limit {limit})",
    ),
    "achieved_rate": Check(
        _measured("achieved_ratio"),
        "a share of {value} of the requests that were due was sent in time (limit {limit})",
        broken=operator.lt,
    ),
    "errors": Check(_measured("error_ratio"), "a share of {value} of the requests failed"),
    "saturated": Check(
        _measured("queue_growth"),
        "a share of {value} of the requests that came was left over (limit {limit})",
    ),
    "bimodal": Check(_bimodal, "the samples of {value} metrics have two modes (limit {limit})"),
}
