"""Turns sampled series and phase boundaries into figures per phase (``decode.power_w``).

Pure: typed values in, typed values out. Host figures live here; those of GPUs in ``aggregate_gpu``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.measure.metric import MEASURED, Absent, Metric, Value, unit_of
from orchestrator.measure.series import SeriesSet
from orchestrator.telemetry.window import (
    Figure,
    Missing,
    Window,
    edges_s,
    gained,
    mean,
    of_readings,
    together,
    total_s,
    widened,
)

# /proc/stat counts in ticks of 10 ms, one core at a time: under half a second one tick is over 1 %.
TICKS_AT_LEAST_S = 0.5

# Short windows get the mean power of the readings around them: too much of what is not theirs.
ENERGY_AT_LEAST_S = 1.0
# An energy whose error may exceed this share of it is not published.
ENERGY_ERROR_LIMIT = 0.5


@dataclass(frozen=True)
class HostSampling:
    """How the host was sampled: what the figures below can and cannot resolve."""

    cores: int
    fast_s: float
    slow_s: float


class Figures:
    """Collects ``<phase>.<metric>``; an absence takes the sampler's own reason where it has one."""

    def __init__(self, phase: str, absent: Mapping[str, str]) -> None:
        self._phase, self._reasons = phase, absent
        self.found: dict[str, Metric] = {}

    def put(self, metric: str, figure: Figure, *, reads: str | None = None) -> None:
        """Add a figure; ``reads`` names the series whose reason explains an absence."""
        name, unit = f"{self._phase}.{metric}", unit_of(metric)
        if isinstance(figure, Missing):
            reason = self._reasons.get(reads or metric, figure.reason)
            self.found[name] = Absent(name, unit, reason)
        else:
            self.found[name] = Value(name, unit, float(figure))


def host_figures(
    phase: str,
    windows: Sequence[Window],
    series: SeriesSet,
    sampling: HostSampling,
    absent: Mapping[str, str],
) -> dict[str, Metric]:
    """Figures of the host and the measured process over one phase's windows.

    ``steal_ratio``, ``other_cpu_ratio``, ``cpu_utilization`` and ``cgroup_throttled_ratio`` are
    shares of the attempt's cores; PSI is a share of the windows' time. ``other_cpu_ratio`` is CPU
    time on those cores that neither the measured process nor this supervisor used.

    Of the pseudo-phase ``measured`` what a verdict looks at is of half a second at least: of
    shorter windows with what is around them, for the whole attempt would hide what happened there.
    """
    out = Figures(phase, absent)
    wall_s = total_s(windows)
    fast, slow = sampling.fast_s, sampling.slow_s

    def delta(source: str, metric: str, period_s: float, at_least_s: float | None = None) -> Figure:
        return gained(series.get(source, metric), windows, period_s=period_s, at_least_s=at_least_s)

    def peak(source: str, metric: str, period_s: float) -> Figure:
        return of_readings(series.get(source, metric), windows, max, period_s=period_s)

    cpu_s = delta("process", "cpu_s", fast)
    out.put("cpu_s", cpu_s)
    out.put("cpu_utilization", _over(cpu_s, wall_s * sampling.cores))
    out.put("rss_bytes", peak("process", "rss_bytes", fast))
    out.put("pss_bytes", peak("process", "pss_bytes", slow))
    out.put("minor_faults", delta("process", "minor_faults", fast))
    out.put("major_faults", delta("process", "major_faults", fast))
    for metric in ("disk_read_bytes", "disk_write_bytes"):
        out.put(metric, delta("process", metric, slow))
    out.put("swap_bytes", peak("process", "swap_bytes", slow))
    for kind in ("cpu", "memory", "io"):
        waited = delta("host", f"psi_{kind}_s", slow)
        out.put(f"psi_{kind}_ratio", _over(waited, wall_s), reads=f"psi_{kind}_s")
    out.put("cgroup_throttled_s", delta("host", "cgroup_throttled_s", slow))
    ticks_s = max(slow, TICKS_AT_LEAST_S)
    judged = widened(windows, ticks_s) if phase == MEASURED else windows
    cores_s = total_s(judged) * sampling.cores

    def share(source: str, metric: str, at_least_s: float) -> Figure:
        counter = series.get(source, metric)
        return _over(gained(counter, judged, period_s=slow, at_least_s=at_least_s), cores_s)

    out.put("steal_ratio", share("host", "steal_s", ticks_s), reads="steal_s")
    busy, own = share("host", "busy_s", ticks_s), share("process", "cpu_s", fast)
    ours = share("host", "supervisor_cpu_s", ticks_s)
    others = together((busy, own, ours), lambda s: max(0.0, s[0] - s[1] - s[2]))
    out.put("other_cpu_ratio", others, reads="busy_s")
    # The kernel adds up the time of every core, those of other attempts in the group, too.
    throttled = together((share("host", "cgroup_throttled_s", slow),), lambda s: min(1.0, s[0]))
    out.put("cgroup_throttled_ratio", throttled, reads="cgroup_throttled_s")
    out.put("cgroup_memory_bytes", peak("host", "cgroup_memory_bytes", slow))
    clock = of_readings(series.get("host", "cpu_frequency_hz"), windows, mean, period_s=slow)
    out.put("cpu_frequency_hz", clock)
    packages_j = delta("host", "rapl_energy_j", fast, ENERGY_AT_LEAST_S)
    out.put("rapl_energy_j", _told_apart(packages_j, series, windows))
    return out.found


def _told_apart(joules: Figure, series: SeriesSet, windows: Sequence[Window]) -> Figure:
    """None of what lies between many short windows: their own energy cannot be told from it."""
    counter = series.get("host", "rapl_energy_j")
    if isinstance(joules, Missing) or counter is None:
        return joules
    blurred_s, wall_s = edges_s(counter, windows), total_s(windows)
    if blurred_s <= ENERGY_ERROR_LIMIT * wall_s:
        return joules
    return Missing(
        f"{len(windows)} windows of {wall_s / len(windows):.3f} s are read every "
        f"{blurred_s / len(windows):.3f} s: too coarse to tell them from what lies between"
    )


def _over(figure: Figure, whole: float) -> Figure:
    if isinstance(figure, Missing):
        return figure
    return figure / whole if whole > 0 else Missing("the window has no length")
