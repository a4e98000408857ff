"""Figures of an attempt's GPUs per phase: energy with its error, clocks, heat, throttling, memory.

Pure. An attempt with several GPUs gets sums (energy, power, memory), extremes (temperature, clocks)
and means; where one GPU has no figure the attempt has none, and that GPU's reason.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.measure.metric import Metric
from orchestrator.measure.series import Series, SeriesSet
from orchestrator.telemetry.aggregate import ENERGY_ERROR_LIMIT, Figures
from orchestrator.telemetry.window import (
    Figure,
    Missing,
    Window,
    edges_s,
    gained,
    inside,
    mean,
    of_readings,
    refresh_s,
    together,
    total_s,
)

ENERGY_MODULUS_J = 2**32 / 1e3
"""Older drivers count millijoules in 32 bits."""
AVERAGE_POWER_OVER_S = 1.0
"""What NVML's average power is averaged over."""
BUSY_AT_LEAST = 0.5
"""Utilisation from which the SM clock is expected to be up."""
NEVER_BUSY = "the GPU was never busy"
"""Why there is no clock ratio where there was no load to raise the clock."""

# Bits of nvmlDeviceGetCurrentClocksEventReasons.
POWER_CAP, HARDWARE, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80

#: What slows a GPU -> the bits of NVML's clocks-event reasons that show it.
REASON_BITS = {
    "thermal": SW_THERMAL | HW_THERMAL,
    "power_brake": POWER_BRAKE,
    "power_cap": POWER_CAP,
    "hardware": HARDWARE,
}


@dataclass(frozen=True)
class Energy:
    """Energy over some windows, and how far off it may be."""

    joules: Figure
    error_j: Figure


def gpu_figures(
    phase: str,
    windows: Sequence[Window],
    series: SeriesSet,
    uuids: Sequence[str],
    absent: Mapping[str, Mapping[str, str]],
    *,
    period_s: float,
) -> dict[str, Metric]:
    """Figures of every GPU of the attempt over one phase's windows.

    Parameters
    ----------
    period_s : float
        How often they were sampled.
    absent : mapping of uuid to mapping of metric to reason
        Why a GPU has no series of a metric; ``*`` stands for all of them.
    """
    out = Figures(phase, {})
    if not uuids:
        for metric in ("energy_j", "power_w"):
            out.put(metric, Missing("the attempt owns no GPU"))
        return out.found
    cards = [_Card(u, windows, series, period_s, absent.get(u, {})) for u in uuids]

    def put(metric: str, how: Callable[[Sequence[float]], float], *of: Figure) -> None:
        out.put(metric, together(of, how))

    energies = [card.energy() for card in cards]
    put("energy_j", sum, *(e.joules for e in energies))
    put("energy_error_j", sum, *(e.error_j for e in energies))
    put("power_w", sum, *(c.power(e) for c, e in zip(cards, energies, strict=True)))
    put("power_max_w", sum, *(c.reading("power_w", max) for c in cards))
    put("power_limit_w", sum, *(c.slow_reading("power_limit_w", min) for c in cards))
    put("sm_clock_hz", mean, *(c.reading("sm_clock_hz", mean) for c in cards))
    put("sm_clock_min_hz", min, *(c.reading("sm_clock_hz", min) for c in cards))
    ratios = [c.clock_ratio() for c in cards]
    # A GPU that waited for the others must not hide how slow they were.
    put("sm_clock_ratio", min, *([r for r in ratios if r != Missing(NEVER_BUSY)] or ratios))
    put("memory_clock_hz", mean, *(c.reading("memory_clock_hz", mean) for c in cards))
    put("temperature_max_c", max, *(c.reading("temperature_c", max) for c in cards))
    hottest = (c.reading("memory_temperature_c", max) for c in cards)
    put("memory_temperature_max_c", max, *hottest)
    put("pstate_max", max, *(c.reading("pstate", max) for c in cards))
    put("gpu_utilization", mean, *(c.reading("gpu_utilization", mean) for c in cards))
    busy = (c.reading("memory_utilization", mean) for c in cards)
    put("memory_utilization", mean, *busy)
    for metric in ("device_memory_bytes", "process_memory_bytes"):
        put(metric, sum, *(c.reading(metric, max) for c in cards))
    for metric in ("foreign_processes", "display_processes"):
        put(metric, max, *(c.reading(metric, max) for c in cards))
    for metric in ("pcie_generation", "pcie_width"):
        put(metric, min, *(c.slow_reading(metric, min) for c in cards))
    put("ecc_uncorrected", sum, *(c.counter("ecc_uncorrected") for c in cards))
    for metric, counters, bits in _THROTTLES:
        put(metric, max, *(c.throttled(counters, bits) for c in cards))
    return out.found


# metric, alternatives of counters whose sum tells it (the best first), bits that show it
_THROTTLES: tuple[tuple[str, tuple[tuple[str, ...], ...], int], ...] = (
    (
        "throttle_thermal_s",
        (("throttle_sw_thermal_s", "throttle_hw_thermal_s"), ("throttle_thermal_policy_s",)),
        SW_THERMAL | HW_THERMAL,
    ),
    ("throttle_power_brake_s", (("throttle_power_brake_s",),), POWER_BRAKE),
    ("throttle_power_cap_s", (("throttle_power_cap_s",),), POWER_CAP),
    # NVML counts no time for the hardware slowdown bit: only the sampled reasons show it.
    ("throttle_hardware_s", (), HARDWARE),
)


# Read a few times a second or less: their last reading may well lie before a window's end.
_RARE = frozenset(
    {
        *("process_memory_bytes", "foreign_processes", "display_processes"),
        *("power_limit_w", "pcie_generation", "pcie_width", "sm_clock_allowed_hz"),
    }
)


class _Card:
    """One GPU over one phase's windows."""

    def __init__(
        self,
        uuid: str,
        windows: Sequence[Window],
        series: SeriesSet,
        period_s: float,
        absent: Mapping[str, str],
    ) -> None:
        self._uuid, self._windows, self._series = uuid, windows, series
        self._period_s, self._absent = period_s, absent
        self._wall_s = total_s(windows)

    def _get(self, metric: str) -> Series | None:
        return self._series.get(self._uuid, metric)

    def _explained(self, metric: str, figure: Figure) -> Figure:
        if not isinstance(figure, Missing):
            return figure
        reason = self._absent.get(metric) or self._absent.get("*")
        return Missing(reason) if reason else figure

    def reading(self, metric: str, how: Callable[[Sequence[float]], float]) -> Figure:
        series, throughout = self._get(metric), metric not in _RARE
        found = of_readings(
            series, self._windows, how, period_s=self._period_s, throughout=throughout
        )
        return self._explained(metric, found)

    def slow_reading(self, metric: str, how: Callable[[Sequence[float]], float]) -> Figure:
        """A value that hardly moves: the last reading before the windows stands in for them."""
        series = self._get(metric)
        if series is not None and self._windows and not inside(series, self._windows):
            before = bisect_left(series.t_ns, self._windows[0][0])
            if before:
                return series.values[before - 1]
        return self.reading(metric, how)

    def counter(self, metric: str, modulus: float | None = None) -> Figure:
        found = gained(self._get(metric), self._windows, period_s=self._period_s, modulus=modulus)
        return self._explained(metric, found)

    def energy(self) -> Energy:
        """Gain of the total-energy counter, with the error of its refresh at every window's edges.

        The counter stands still between refreshes and is read a moment after each, so at either
        edge it may be off by the power times (refresh + time between the readings around it).
        """
        joules = self.counter("energy_j", ENERGY_MODULUS_J)
        series = self._get("energy_j")
        if isinstance(joules, Missing) or series is None:
            return Energy(joules, joules if isinstance(joules, Missing) else Missing("no counter"))
        if joules <= 0:
            still = Missing("the energy counter stands still")
            return Energy(still, still)
        windows = self._windows
        blur_s = len(windows) * refresh_s(series) + edges_s(series, windows)
        error_j = blur_s * joules / self._wall_s
        if error_j > ENERGY_ERROR_LIMIT * joules:
            at_edge_s = blur_s / len(windows)
            vague = Missing(
                f"the energy counter is known to ±{at_edge_s * 1e3:.0f} ms at a phase's edges: "
                f"{joules:.3g} J may be off by {error_j:.3g} J"
            )
            return Energy(vague, Missing(vague.reason))
        return Energy(joules, error_j)

    def power(self, energy: Energy) -> Figure:
        """Mean power: energy over time, else the mean of the instantaneous readings."""
        if not isinstance(energy.joules, Missing):
            return energy.joules / self._wall_s
        instant = self.reading("power_w", mean)
        if not isinstance(instant, Missing):
            return instant
        if self._get("power_average_w") is None:
            return instant
        if self._wall_s < AVERAGE_POWER_OVER_S * 2:
            return Missing(
                "this GPU reports only power averaged over 1 s, the phase is shorter than 2 s"
            )
        return self.reading("power_average_w", mean)

    def clock_ratio(self) -> Figure:
        """Mean SM clock while busy over its allowed maximum; all readings if busy is not told."""
        clock, allowed = self._get("sm_clock_hz"), self.slow_reading("sm_clock_allowed_hz", max)
        if isinstance(allowed, Missing):
            return allowed
        if clock is None or allowed <= 0:
            return self._explained("sm_clock_hz", Missing("was never read"))
        busy = self._get("gpu_utilization")
        busy_at = None
        if busy is not None:
            times = zip(busy.t_ns, busy.values, strict=True)
            busy_at = {t for t, u in times if u >= BUSY_AT_LEAST}
        found = [
            clock.values[i]
            for begin, end in self._windows
            for i in range(bisect_left(clock.t_ns, begin), bisect_right(clock.t_ns, end))
            if busy_at is None or clock.t_ns[i] in busy_at
        ]
        if found:
            return mean(found) / allowed
        if busy_at is not None and inside(clock, self._windows):
            return Missing(NEVER_BUSY)
        return self.reading("sm_clock_hz", mean)

    def throttled(self, alternatives: Sequence[Sequence[str]], bits: int) -> Figure:
        """Seconds throttled: the cumulative counters, else the share of readings with the reason.

        A counter that stands still while the reason is shown is not kept by this driver; one that
        gains more than the time that passed is not in nanoseconds. Neither is believed.
        """
        sampled = self._sampled(bits)
        for names in alternatives:
            gains = [self.counter(name) for name in names]
            known = [g for g in gains if not isinstance(g, Missing)]
            if len(known) != len(gains):
                continue
            if any(g > 1.05 * self._wall_s + self._period_s for g in known):
                continue
            counted = sum(known)
            if counted == 0 and not isinstance(sampled, Missing) and sampled > 0:
                return sampled
            return counted
        return sampled

    def _sampled(self, bits: int) -> Figure:
        share = self.reading(
            "clocks_event_reasons", lambda values: mean([bool(int(v) & bits) for v in values])
        )
        return share if isinstance(share, Missing) else share * self._wall_s
