"""When an attempt was slowed from outside: stretches of its telemetry, by what slowed it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.telemetry.aggregate_gpu import REASON_BITS

if TYPE_CHECKING:
    from orchestrator.telemetry.history import Histories, History

_SEVERE, _MILD = "#b3261e", "#c77700"

# A busy machine is stolen a little from all the time: only what the verdict would mind is marked.
_STEAL_SHARE = 0.05


@dataclass(frozen=True)
class Stretch:
    """A time in which something slowed the attempt.

    Attributes
    ----------
    begin_s, end_s : float
        On the telemetry's time axis.
    spent_s : float
        Seconds slowed within it, by the counter; its length where only samples tell.
    """

    kind: str
    colour: str
    begin_s: float
    end_s: float
    spent_s: float


# Counter -> what a reader calls it; a GPU's, or the host's.
_GPU_COUNTERS = {
    "throttle_sw_thermal_s": ("thermal slowdown", _SEVERE),
    "throttle_hw_thermal_s": ("thermal slowdown", _SEVERE),
    "throttle_thermal_policy_s": ("thermal slowdown", _SEVERE),
    "throttle_power_brake_s": ("power brake", _SEVERE),
    "throttle_power_cap_s": ("power cap", _MILD),
}
# A driver that tells both counts the same seconds twice.
_OLDER = {"throttle_thermal_policy_s": ("throttle_sw_thermal_s", "throttle_hw_thermal_s")}
_HOST_COUNTERS = {
    "cgroup_throttled_s": ("throttled by its cgroup", _SEVERE, 0.0),
    "steal_s": ("CPU time stolen", _SEVERE, _STEAL_SHARE),
}
# What only the sampled reasons show where the counters are missing, or always.
_REASONS = {
    "thermal": (
        "thermal slowdown",
        _SEVERE,
        ("throttle_sw_thermal_s", "throttle_thermal_policy_s"),
    ),
    "power_brake": ("power brake", _SEVERE, ("throttle_power_brake_s",)),
    "power_cap": ("power cap", _MILD, ("throttle_power_cap_s",)),
    "hardware": ("hardware slowdown", _SEVERE, ()),
}


def stretches(histories: Histories) -> list[Stretch]:
    """Every stretch in which a counter rose or a reason was seen, neighbours joined."""
    found: list[Stretch] = []
    for uuid in histories.gpus:
        for metric, (kind, colour) in _GPU_COUNTERS.items():
            if any(histories.get(uuid, newer) for newer in _OLDER.get(metric, ())):
                continue
            history = histories.get(uuid, metric)
            if history is not None:
                found.extend(_risen(history, kind, colour, 0.0))
        seen = histories.get(uuid, "clocks_event_reasons")
        for reason, (kind, colour, counters) in _REASONS.items():
            if seen is not None and not any(histories.get(uuid, c) for c in counters):
                found.extend(_sampled(seen, REASON_BITS[reason], kind, colour))
    for metric, (kind, colour, share) in _HOST_COUNTERS.items():
        history = histories.get("host", metric)
        if history is not None:
            found.extend(_risen(history, kind, colour, share))
    return sorted(_joined(found), key=lambda stretch: (stretch.begin_s, stretch.kind))


def _risen(history: History, kind: str, colour: str, share: float) -> Iterator[Stretch]:
    """Between two readings of a counter that rose by more than ``share`` of the time."""
    times, values = history.t_s.tolist(), history.values.tolist()
    for at in range(1, len(times)):
        spent, gap = values[at] - values[at - 1], times[at] - times[at - 1]
        if spent > max(share * gap, 0.0):
            yield Stretch(kind, colour, times[at - 1], times[at], spent)


def _sampled(history: History, bits: int, kind: str, colour: str) -> Iterator[Stretch]:
    times, values = history.t_s.tolist(), history.values.tolist()
    for at in range(1, len(times)):
        if int(values[at]) & bits:
            yield Stretch(kind, colour, times[at - 1], times[at], times[at] - times[at - 1])


def _joined(found: list[Stretch]) -> list[Stretch]:
    joined: dict[str, list[Stretch]] = {}
    for one in sorted(found, key=lambda stretch: stretch.begin_s):
        of_kind = joined.setdefault(one.kind, [])
        if of_kind and one.begin_s <= of_kind[-1].end_s:
            last = of_kind[-1]
            of_kind[-1] = Stretch(
                one.kind,
                one.colour,
                last.begin_s,
                max(last.end_s, one.end_s),
                last.spent_s + one.spent_s,
            )
        else:
            of_kind.append(one)
    return [stretch for of_kind in joined.values() for stretch in of_kind]
