"""Energy of CPU packages, on a powercap tree of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.attempt import AttemptReport, Outcome, Slot
from orchestrator.measure import Absent, Metric, Samples, Value
from orchestrator.telemetry.aggregate import HostSampling, host_figures
from orchestrator.telemetry.derived import derived
from orchestrator.telemetry.host import HostSampler
from orchestrator.telemetry.rapl import Packages

S = 10**9
RANGE_UJ = 262_143_328_850


class Powercap:
    """``/sys/class/powercap`` of a machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def zone(self, zone: str, name: str, uj: int, *, range_uj: int | None = RANGE_UJ) -> None:
        folder = self.root / "class" / "powercap" / zone
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{uj}\n")
        if range_uj is not None:
            (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    return Powercap(tmp_path / "sys")


def test_packages_are_summed_and_nothing_counts_twice(powercap: Powercap) -> None:
    powercap.zone("intel-rapl:0", "package-0", 5_000_000)
    powercap.zone("intel-rapl:0:0", "core", 3_000_000)
    powercap.zone("intel-rapl:1", "package-1", 7_000_000)
    powercap.zone("intel-rapl:10", "package-10", 1_000_000)
    powercap.zone("intel-rapl:2", "psys", 90_000_000)
    powercap.zone("intel-rapl-mmio:0", "package-0", 5_000_000)
    packages = Packages(powercap.root)
    assert packages.read_j(0) == pytest.approx(13.0)
    packages.close()


def test_each_package_wraps_by_itself(powercap: Powercap) -> None:
    near = RANGE_UJ - 10_000_000
    powercap.zone("intel-rapl:0", "package-0", near)
    powercap.zone("intel-rapl:1", "package-1", 1_000_000, range_uj=65_532_610_987)
    packages = Packages(powercap.root)
    first = packages.read_j(0)
    powercap.zone("intel-rapl:0", "package-0", 20_000_000)
    powercap.zone("intel-rapl:1", "package-1", 41_000_000, range_uj=65_532_610_987)
    second = packages.read_j(S)
    assert first is not None
    assert second is not None
    # 10 J to the wrap, 20 J after it, and 40 J of the other.
    assert second - first == pytest.approx(70.0)
    powercap.zone("intel-rapl:1", "package-1", 43_000_000, range_uj=65_532_610_987)
    third = packages.read_j(2 * S)
    assert third is not None
    assert third - second == pytest.approx(2.0)
    packages.close()


@pytest.mark.parametrize("range_uj", [RANGE_UJ, None])
def test_a_counter_that_was_set_back_is_no_wrap(powercap: Powercap, range_uj: int | None) -> None:
    powercap.zone("intel-rapl:0", "package-0", 100_000_000_000, range_uj=range_uj)
    packages = Packages(powercap.root)
    packages.read_j(0)
    powercap.zone("intel-rapl:0", "package-0", 5, range_uj=range_uj)
    assert packages.read_j(S) is None
    assert "went backwards and did not wrap" in (packages.absent_reason or "")
    powercap.zone("intel-rapl:0", "package-0", 900, range_uj=range_uj)
    assert packages.read_j(2 * S) is None


def test_without_counters_the_reason_stands(powercap: Powercap) -> None:
    assert Packages(powercap.root).absent_reason == "this CPU has no RAPL counters here"
    powercap.zone("intel-rapl:0", "psys", 5)
    assert Packages(powercap.root).absent_reason == "this CPU has no RAPL counters here"
    powercap.zone("intel-rapl:0", "package-0", 5)
    # A directory in its place cannot be read by anybody, root included.
    energy = powercap.root / "class/powercap/intel-rapl:0/energy_uj"
    energy.unlink()
    energy.mkdir()
    packages = Packages(powercap.root)
    assert packages.read_j(0) is None
    assert "is a directory" in (packages.absent_reason or "")


def decoding(*telemetry: Metric, gpus: tuple[str, ...] = ()) -> AttemptReport:
    """Three repetitions of 20 tokens in 2 s each: 60 tokens."""
    metrics: dict[str, Metric] = {
        "ttft_s": Samples("ttft_s", "s", (0.5,) * 3),
        "e2e_s": Samples("e2e_s", "s", (2.5,) * 3),
        "decode_tokens_per_s": Samples("decode_tokens_per_s", "tokens/s", (10.0,) * 3),
    }
    seen = {metric.name: metric for metric in telemetry}
    slot = Slot("n", "host", (0,), gpus)
    return AttemptReport("a", "h", Outcome.OK, metrics=metrics, telemetry=seen, slot=slot)


def test_joules_per_token_of_a_cpu_from_its_counters(powercap: Powercap) -> None:
    """From the files to the metric: 15 W and 25 W in two packages, one wraps on the way."""
    begin_uj = RANGE_UJ - 30_000_000
    now_ns = 0
    powercap.zone("intel-rapl:0", "package-0", begin_uj)
    powercap.zone("intel-rapl:1", "package-1", 0)
    sampler = HostSampler((0,), root=powercap.root.parent, now_ns=lambda: now_ns)
    for tick in range(101):
        now_ns = tick * S // 10
        at_s = tick / 10
        powercap.zone("intel-rapl:0", "package-0", (begin_uj + round(15e6 * at_s)) % RANGE_UJ)
        powercap.zone("intel-rapl:1", "package-1", round(25e6 * at_s))
        sampler.tick()
    sampler.close()
    decode = [(1 * S, 3 * S), (4 * S, 6 * S), (7 * S, 9 * S)]
    sampling = HostSampling(cores=1, fast_s=0.1, slow_s=0.5)
    found = host_figures("decode", decode, sampler.series, sampling, sampler.absent)
    energy = found["decode.rapl_energy_j"]
    assert energy == Value("decode.rapl_energy_j", "J", pytest.approx(240.0))
    metric = derived(decoding(energy))["joules_per_token"]
    assert metric == Value("joules_per_token", "J/token", pytest.approx(4.0))
    short = host_figures("decode", [(S, S + S // 2)], sampler.series, sampling, sampler.absent)
    assert isinstance(short["decode.rapl_energy_j"], Absent)


def test_a_gpu_attempt_never_takes_the_energy_of_the_cpu() -> None:
    ours = Absent("decode.energy_j", "J", "the driver does not tell")
    package = Value("decode.rapl_energy_j", "J", 240.0)
    found = derived(decoding(ours, package, gpus=("GPU-1",)))["joules_per_token"]
    assert found == Absent("joules_per_token", "J/token", "the driver does not tell")


def test_a_cpu_that_cannot_tell_says_why() -> None:
    nothing = Absent("decode.energy_j", "J", "the attempt owns no GPU")
    package = Absent("decode.rapl_energy_j", "J", "this CPU has no RAPL counters here")
    found = derived(decoding(nothing, package))["joules_per_token"]
    assert found == Absent("joules_per_token", "J/token", "this CPU has no RAPL counters here")
