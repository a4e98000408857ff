"""Figures per phase from known series: the host's, and those of GPUs with their energy error."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.measure import Absent, Metric, Value
from orchestrator.measure.series import SeriesSet
from orchestrator.telemetry.aggregate import HostSampling, host_figures
from orchestrator.telemetry.aggregate_gpu import gpu_figures

S = 1_000_000_000
GPU, OTHER = "GPU-1", "GPU-2"
WINDOW = [(2 * S, 6 * S)]
HOST = HostSampling(cores=2, fast_s=0.1, slow_s=0.5)


def fill(
    series: SeriesSet,
    source: str,
    metric: str,
    value: Callable[[float], float],
    *,
    end_s: float = 10.0,
    period_s: float = 0.05,
    counter: bool = False,
) -> None:
    for i in range(round(end_s / period_s) + 1):
        at_s = i * period_s
        series.add(source, metric, round(at_s * S), value(at_s), counter=counter)


def value(metrics: dict[str, Metric], name: str) -> float:
    found = metrics[name]
    assert isinstance(found, Value), found
    return found.value


def reason(metrics: dict[str, Metric], name: str) -> str:
    found = metrics[name]
    assert isinstance(found, Absent), found
    return found.reason


def test_host_shares_are_of_the_attempts_cores_and_time() -> None:
    series = SeriesSet()
    fill(series, "process", "cpu_s", lambda t: 1.2 * t, counter=True)
    fill(series, "host", "busy_s", lambda t: 1.5 * t, period_s=0.5, counter=True)
    fill(series, "host", "steal_s", lambda t: 0.1 * t, period_s=0.5, counter=True)
    fill(series, "host", "supervisor_cpu_s", lambda t: 0.02 * t, period_s=0.5, counter=True)
    fill(series, "host", "psi_cpu_s", lambda t: 0.25 * t, period_s=0.5, counter=True)
    fill(series, "process", "rss_bytes", lambda t: 1000 * t)
    found = host_figures("decode", WINDOW, series, HOST, {"rapl_energy_j": "no RAPL here"})
    assert value(found, "decode.cpu_s") == pytest.approx(4.8)
    assert value(found, "decode.cpu_utilization") == pytest.approx(0.6)
    assert value(found, "decode.steal_ratio") == pytest.approx(0.05)
    assert value(found, "decode.other_cpu_ratio") == pytest.approx((1.5 - 1.2 - 0.02) / 2)
    assert value(found, "decode.psi_cpu_ratio") == pytest.approx(0.25)
    assert value(found, "decode.rss_bytes") == pytest.approx(6000)
    assert reason(found, "decode.rapl_energy_j") == "no RAPL here"
    assert reason(found, "decode.pss_bytes") == "was never read"


@pytest.mark.parametrize(("per_s", "share"), [(0.5, 0.25), (7.0, 1.0)])
def test_throttling_is_a_share_of_the_cores_time(per_s: float, share: float) -> None:
    series = SeriesSet()
    # Of two cores, half a second each second; of eight others' in the group, seven.
    fill(series, "host", "cgroup_throttled_s", lambda t: per_s * t, period_s=0.5, counter=True)
    found = host_figures("decode", WINDOW, series, HOST, {})
    assert value(found, "decode.cgroup_throttled_s") == pytest.approx(4 * per_s)
    assert value(found, "decode.cgroup_throttled_ratio") == pytest.approx(share)


def test_tick_counted_shares_are_refused_over_a_tenth_of_a_second() -> None:
    series = SeriesSet()
    fill(series, "host", "steal_s", lambda t: 0.0, period_s=0.05, counter=True)
    short = [(2 * S, round(2.3 * S))]
    found = host_figures("prefill", short, series, HostSampling(2, 0.05, 0.05), {})
    assert "shorter than the 0.5 s" in reason(found, "prefill.steal_ratio")


def test_what_disturbed_a_short_measurement_is_not_thinned_out_by_a_long_attempt() -> None:
    def stolen(t: float) -> float:  # both cores, all the time from the 8th second to the 9th
        return 2 * min(max(t - 8.0, 0.0), 1.0)

    series = SeriesSet()
    for metric in ("steal_s", "busy_s", "cgroup_throttled_s"):
        fill(series, "host", metric, stolen, period_s=0.5, counter=True)
    for source, metric in (("process", "cpu_s"), ("host", "supervisor_cpu_s")):
        fill(series, source, metric, lambda t: 0.0, counter=True)
    short = [(round((8.3 + 0.1 * i) * S), round((8.32 + 0.1 * i) * S)) for i in range(3)]
    found = host_figures("measured", short, series, HOST, {})
    for share in ("steal_ratio", "other_cpu_ratio", "cgroup_throttled_ratio"):
        assert value(found, f"measured.{share}") == pytest.approx(1.0)
        assert f"decode.{share}" in host_figures("decode", short, series, HOST, {})
    before = [(round(5.3 * S), round(5.32 * S))]
    assert value(host_figures("measured", before, series, HOST, {}), "measured.steal_ratio") == 0
    end = [(round(9.97 * S), round(9.99 * S))]  # what follows the last reading is as what was read
    assert value(host_figures("measured", end, series, HOST, {}), "measured.steal_ratio") == 0
    nothing = host_figures("measured", [], series, HOST, {})
    assert reason(nothing, "measured.steal_ratio") == "the attempt has no such window"


def energy_series(*, refresh_s: float, power_w: float = 400.0) -> SeriesSet:
    series = SeriesSet()
    fill(
        series,
        GPU,
        "energy_j",
        lambda t: power_w * int(t / refresh_s + 1e-9) * refresh_s,
        counter=True,
    )
    fill(series, GPU, "power_w", lambda t: power_w)
    return series


def gpu(series: SeriesSet, windows: list[tuple[int, int]], *uuids: str) -> dict[str, Metric]:
    return gpu_figures("decode", windows, series, uuids or (GPU,), {}, period_s=0.05)


@pytest.mark.parametrize("refresh_s", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("begin_s", [2.0, 2.013, 2.087, 2.155])
def test_energy_error_covers_what_the_counters_refresh_hides(
    refresh_s: float, begin_s: float
) -> None:
    series = energy_series(refresh_s=refresh_s)
    for length_s in (0.9, 2.345, 5.0):
        found = gpu(series, [(round(begin_s * S), round((begin_s + length_s) * S))])
        true_j = 400.0 * length_s
        assert abs(value(found, "decode.energy_j") - true_j) <= value(
            found, "decode.energy_error_j"
        )


def test_energy_error_grows_with_every_window_edge() -> None:
    series = energy_series(refresh_s=0.1)
    one = gpu(series, [(2 * S, 8 * S)])
    parts = gpu(series, [(round((2 + 2 * i) * S), round((3.5 + 2 * i) * S)) for i in range(4)])
    # Of the same power and the same total time, but eight edges where the counter may lag, not two.
    assert value(parts, "decode.energy_error_j") == pytest.approx(
        4 * value(one, "decode.energy_error_j"), rel=0.05
    )


def test_energy_of_a_phase_that_began_while_the_driver_did_not_answer_is_not_published() -> None:
    whole, gappy = energy_series(refresh_s=0.1), SeriesSet()
    read = whole.get(GPU, "energy_j")
    assert read is not None
    for t_ns, joules in zip(read.t_ns, read.values, strict=True):
        # 400 W until the 5th second, nothing after it, and no reading from the 3rd to the 7th.
        if not 3 * S < t_ns < 7 * S:
            gappy.add(GPU, "energy_j", t_ns, min(joules, 2000.0), counter=True)
    # 1,200 J were used in it; half of what the gap saw would be 800.
    found = gpu(gappy, [(2 * S, 5 * S)])
    assert "may be off by" in reason(found, "decode.energy_j")
    assert value(gpu(gappy, [(S, 8 * S)]), "decode.energy_j") == pytest.approx(1600.0)


def test_energy_of_many_short_windows_is_not_told_from_what_lies_between() -> None:
    series = SeriesSet()
    fill(series, "host", "rapl_energy_j", lambda t: 100.0 * t, period_s=0.1, counter=True)

    def found(count: int, length_s: float) -> dict[str, Metric]:
        windows = [(round(i * 0.4 * S), round((i * 0.4 + length_s) * S)) for i in range(count)]
        return host_figures("decode", windows, series, HOST, {})

    assert value(found(8, 0.3), "decode.rapl_energy_j") == pytest.approx(240.0)
    assert "too coarse" in reason(found(20, 0.1), "decode.rapl_energy_j")


def test_energy_of_a_phase_shorter_than_the_refresh_is_not_published() -> None:
    found = gpu(energy_series(refresh_s=0.1), [(2 * S, round(2.2 * S))])
    assert "may be off by" in reason(found, "decode.energy_j")
    assert value(found, "decode.power_w") == pytest.approx(400.0), "power is told by its readings"
    tiny = gpu(energy_series(refresh_s=0.1), [(2 * S, round(2.01 * S))])
    assert "shorter than" in reason(tiny, "decode.energy_j")


def test_energy_counter_of_an_old_driver_wraps() -> None:
    series = SeriesSet()
    modulus_j = 2**32 / 1e3
    fill(series, GPU, "energy_j", lambda t: (modulus_j - 1000 + 300 * t) % modulus_j, counter=True)
    assert value(gpu(series, WINDOW), "decode.energy_j") == pytest.approx(1200.0)


def test_energy_counter_that_goes_backwards_or_stands_still_has_no_figure() -> None:
    reset, still = SeriesSet(), SeriesSet()
    fill(reset, GPU, "energy_j", lambda t: 5000 + 300 * t if t < 4 else 300 * t, counter=True)
    fill(still, GPU, "energy_j", lambda t: 5000.0, counter=True)
    assert "backwards" in reason(gpu(reset, WINDOW), "decode.energy_j")
    assert "stands still" in reason(gpu(still, WINDOW), "decode.energy_j")


def test_only_averaged_power_is_refused_for_a_short_phase() -> None:
    series = SeriesSet()
    fill(series, GPU, "power_average_w", lambda t: 250.0)
    assert "averaged over 1 s" in reason(gpu(series, [(2 * S, 3 * S)]), "decode.power_w")
    assert value(gpu(series, WINDOW), "decode.power_w") == pytest.approx(250.0)


def test_several_gpus_add_up_and_one_without_a_figure_leaves_none() -> None:
    series = energy_series(refresh_s=0.05)
    fill(series, OTHER, "energy_j", lambda t: 100.0 * t, counter=True)
    fill(series, OTHER, "temperature_c", lambda t: 60.0 + t)
    fill(series, GPU, "temperature_c", lambda t: 50.0)
    both = gpu(series, WINDOW, GPU, OTHER)
    assert value(both, "decode.energy_j") == pytest.approx(2000.0)
    assert value(both, "decode.temperature_max_c") == pytest.approx(66.0)
    absent = {OTHER: {"*": "the GPU fell off the bus"}}
    uuids, absent = (GPU, "GPU-3", OTHER), {**absent, "GPU-3": {"*": "lost"}}
    found = gpu_figures("decode", WINDOW, series, uuids, absent, period_s=0.05)
    assert reason(found, "decode.energy_j") == "lost"


def throttle(series: SeriesSet, uuid: str = GPU) -> dict[str, Metric]:
    return gpu_figures("decode", WINDOW, series, (uuid,), {}, period_s=0.05)


def test_throttle_time_comes_from_the_cumulative_counters() -> None:
    series = SeriesSet()
    fill(series, GPU, "throttle_sw_thermal_s", lambda t: max(0.0, t - 5), counter=True)
    fill(series, GPU, "throttle_hw_thermal_s", lambda t: 0.0, counter=True)
    fill(series, GPU, "clocks_event_reasons", lambda t: 0x20 if t >= 5 else 0)
    assert value(throttle(series), "decode.throttle_thermal_s") == pytest.approx(1.0, abs=0.03)


def test_without_counters_the_sampled_reasons_tell() -> None:
    series = SeriesSet()
    fill(series, GPU, "clocks_event_reasons", lambda t: 0x40 | 0x8 if 3 <= t < 4 else 0x4)
    found = throttle(series)
    assert value(found, "decode.throttle_thermal_s") == pytest.approx(1.0, abs=0.06)
    assert value(found, "decode.throttle_hardware_s") == pytest.approx(1.0, abs=0.06)
    assert value(found, "decode.throttle_power_cap_s") == pytest.approx(3.0, abs=0.06)
    assert value(found, "decode.throttle_power_brake_s") == 0.0


def test_counter_that_stands_still_or_runs_too_fast_is_not_believed() -> None:
    still, fast = SeriesSet(), SeriesSet()
    for series, pace in ((still, 0.0), (fast, 1000.0)):
        for name in ("throttle_sw_thermal_s", "throttle_hw_thermal_s"):
            fill(series, GPU, name, lambda t, pace=pace: pace * t, counter=True)  # type: ignore[misc]
        fill(series, GPU, "clocks_event_reasons", lambda t: 0x20 if t >= 5 else 0)
        seconds = value(throttle(series), "decode.throttle_thermal_s")
        assert seconds == pytest.approx(1.0, abs=0.06)


def test_clock_ratio_counts_only_while_busy() -> None:
    series = SeriesSet()
    fill(series, GPU, "sm_clock_hz", lambda t: 900e6 if t < 4 else 1980e6)
    fill(series, GPU, "sm_clock_allowed_hz", lambda t: 1980e6, period_s=1.0)
    fill(series, GPU, "gpu_utilization", lambda t: 0.0 if t < 4 else 0.9)
    assert value(throttle(series), "decode.sm_clock_ratio") == pytest.approx(1.0)
    idle = SeriesSet()
    fill(idle, GPU, "sm_clock_hz", lambda t: 210e6)
    fill(idle, GPU, "sm_clock_allowed_hz", lambda t: 1980e6, period_s=1.0)
    fill(idle, GPU, "gpu_utilization", lambda t: 0.0)
    assert reason(throttle(idle), "decode.sm_clock_ratio") == "the GPU was never busy"


def test_a_gpu_that_waited_does_not_hide_how_slow_the_other_was() -> None:
    series = SeriesSet()
    for uuid, clock_hz, busy in ((GPU, 990e6, 0.9), (OTHER, 210e6, 0.0)):
        fill(series, uuid, "sm_clock_hz", lambda t, hz=clock_hz: hz)  # type: ignore[misc]
        fill(series, uuid, "sm_clock_allowed_hz", lambda t: 1980e6, period_s=1.0)
        fill(series, uuid, "gpu_utilization", lambda t, share=busy: share)  # type: ignore[misc]
    found = gpu(series, WINDOW, GPU, OTHER)
    assert value(found, "decode.sm_clock_ratio") == pytest.approx(0.5)


def test_attempt_without_a_gpu_says_so() -> None:
    found = gpu_figures("decode", WINDOW, SeriesSet(), (), {}, period_s=0.05)
    assert set(found) == {"decode.energy_j", "decode.power_w"}
    assert reason(found, "decode.energy_j") == "the attempt owns no GPU"
