"""The host sampler: on a made-up procfs whose figures are known, and on this very machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.measure import Absent
from orchestrator.measure.series import Series
from orchestrator.telemetry.aggregate import HostSampling, host_figures
from orchestrator.telemetry.cgroup import find_cgroup
from orchestrator.telemetry.host import BUDGET, MAX_PERIOD_S, PSS_BUDGET, PSS_PAGE_S, HostSampler
from orchestrator.telemetry.procfs import KernelFile, numbers

TICKS = os.sysconf("SC_CLK_TCK")
PID = 4242


class Machine:
    """A procfs and sysfs of our own, and a clock that moves when told to."""

    def __init__(self, root: Path) -> None:
        self.proc, self.sys, self.now_ns = root / "proc", root / "sys", 10**9
        self.cost_ns = 0
        self.write(self.proc / "self" / "cgroup", "0::/job")
        self.write(self.sys / "fs/cgroup/job/cpu.stat", "usage_usec 5\nthrottled_usec 0\n")
        self.write(self.sys / "fs/cgroup/job/memory.current", "1000")
        self.write(self.sys / "fs/cgroup/job/memory.peak", "5000")
        for kind in ("cpu", "memory", "io"):
            self.pressure(kind, 0)
        self.stat(busy=0, steal=0)
        self.process()

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def pressure(self, kind: str, total_us: int) -> None:
        text = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total_us}\nfull avg10=0 total=0\n"
        self.write(self.proc / "pressure" / kind, text)

    def stat(self, *, busy: int, steal: int, elsewhere: int = 0) -> None:
        lines = [f"cpu  {busy + elsewhere} 0 0 0 0 0 0 {steal} 0 0"]
        lines += [f"cpu0 {busy} 0 0 900 50 0 0 {steal} 0 0", f"cpu1 {elsewhere} 0 0 0 0 0 0 0 0 0"]
        self.write(self.proc / "stat", "\n".join([*lines, "intr 5", "ctxt 9", ""]))

    def process(self, *, cpu: int = 0, rss_pages: int = 10, faults: int = 0) -> None:
        fields = [0] * 50
        fields[7], fields[9], fields[11], fields[21] = faults, 1, cpu, rss_pages
        rest = " ".join(map(str, fields[1:]))
        self.write(self.proc / str(PID) / "stat", f"{PID} (a (odd) name) S {rest}\n")
        self.write(self.proc / str(PID) / "io", "rchar: 1\nread_bytes: 4096\nwrite_bytes: 8192\n")
        status = "Name:\tx\nVmHWM:\t     200 kB\nVmSwap:\t      12 kB\n"
        self.write(self.proc / str(PID) / "status", status)
        rollup = "00-ff ---p 00 00:00 0 [rollup]\nRss:  300 kB\nPss:   150 kB\n"
        self.write(self.proc / str(PID) / "smaps_rollup", rollup)

    def sampler(self, *cpus: int) -> HostSampler:
        return HostSampler(
            cpus or (0,),
            root=self.proc.parent,
            now_ns=lambda: self.now_ns,
            cost_ns=lambda: self.cost_ns,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def last(sampler: HostSampler, source: str, metric: str) -> float:
    series = sampler.series.get(source, metric)
    assert isinstance(series, Series), f"{metric} was not read"
    return series.values[-1]


def gaps_s(sampler: HostSampler) -> list[float]:
    """Between readings of proportional memory."""
    series = sampler.series.get("process", "pss_bytes")
    assert series is not None
    return [(b - a) / 1e9 for a, b in pairwise(series.t_ns)]


def test_figures_of_a_known_machine(machine: Machine) -> None:
    sampler = machine.sampler(0)
    sampler.attach(PID)
    machine.stat(busy=150, steal=20, elsewhere=777)
    machine.process(cpu=120, rss_pages=25, faults=33)
    machine.pressure("cpu", 2_500_000)
    machine.write(machine.sys / "fs/cgroup/job/cpu.stat", "throttled_usec 40000\n")
    machine.now_ns += 10**9
    sampler.tick(slow=True)
    sampler.close()
    assert last(sampler, "host", "busy_s") == pytest.approx(150 / TICKS), "cpu1 is not ours"
    assert last(sampler, "host", "steal_s") == pytest.approx(20 / TICKS)
    assert last(sampler, "process", "cpu_s") == pytest.approx(120 / TICKS)
    assert last(sampler, "process", "rss_bytes") == 25 * os.sysconf("SC_PAGE_SIZE")
    assert last(sampler, "process", "minor_faults") == 33
    assert last(sampler, "process", "swap_bytes") == 12 * 1024
    assert last(sampler, "process", "rss_peak_bytes") == 200 * 1024
    assert sampler.series.get("process", "pss_bytes") is None, "which could wait for the process"
    assert last(sampler, "process", "disk_write_bytes") == 8192
    assert last(sampler, "host", "psi_cpu_s") == pytest.approx(2.5)
    assert last(sampler, "host", "cgroup_throttled_s") == pytest.approx(0.04)
    assert last(sampler, "host", "cgroup_memory_bytes") == 1000
    assert last(sampler, "host", "cgroup_memory_peak_bytes") == 5000
    assert set(sampler.absent) == {"rapl_energy_j", "cpu_frequency_hz"}


def test_without_cores_of_its_own_every_core_counts(machine: Machine) -> None:
    machine.stat(busy=100, steal=0, elsewhere=50)
    sampler = HostSampler((), root=machine.proc.parent)
    sampler.tick()
    assert last(sampler, "host", "busy_s") == pytest.approx(150 / TICKS)
    sampler.close()


@pytest.mark.parametrize(
    ("stat", "cpus", "says"),
    [
        ("cpu  9 0 0 9 0 0 0 0 0 0\ncpu0 9 0 0 9 0 0 0 0 0 0\n", (0, 5), "does not list cpu5"),
        ("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n", (0,), "counts nothing"),
        (None, (0,), "no such file"),
    ],
)
def test_cores_that_nothing_is_counted_of_are_not_taken_to_be_idle(
    machine: Machine, stat: str | None, cpus: tuple[int, ...], says: str
) -> None:
    if stat is None:
        (machine.proc / "stat").unlink()
    else:
        machine.write(machine.proc / "stat", stat)
    sampler = machine.sampler(*cpus)
    sampler.attach(PID)
    machine.now_ns += 2 * 10**9
    sampler.tick(slow=True)
    sampler.close()
    found = host_figures(
        "decode",
        [(10**9, 3 * 10**9)],
        sampler.series,
        HostSampling(len(cpus), 0.1, 0.5),
        sampler.absent,
    )
    for figure in ("steal_ratio", "other_cpu_ratio"):
        absent = found[f"decode.{figure}"]
        assert isinstance(absent, Absent)
        assert says in absent.reason


def test_energy_and_frequency_where_they_can_be_read(machine: Machine) -> None:
    rapl = machine.sys / "class/powercap/intel-rapl:0"
    machine.write(rapl / "energy_uj", "7000000")
    machine.write(rapl / "max_energy_range_uj", "262143000000")
    cpufreq = machine.sys / "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
    machine.write(cpufreq, "2400000")
    sampler = machine.sampler(0)
    sampler.tick()
    assert last(sampler, "host", "rapl_energy_j") == pytest.approx(7.0)
    assert last(sampler, "host", "cpu_frequency_hz") == pytest.approx(2.4e9)
    assert sampler.absent == {}
    sampler.close()


def test_what_is_missing_has_a_reason_and_costs_nothing_else(machine: Machine) -> None:
    for path in [*machine.proc.glob("pressure/*"), machine.proc / str(PID) / "io"]:
        path.unlink()
    machine.write(machine.proc / "self" / "cgroup", "")
    sampler = machine.sampler(0)
    sampler.attach(PID)
    sampler.tick(slow=True)
    sampler.close()
    for metric in ("psi_cpu_s", "disk_read_bytes", "cgroup_throttled_s", "cgroup_memory_bytes"):
        assert sampler.absent[metric]
    assert last(sampler, "process", "cpu_s") == 0


def test_process_that_ended_is_no_error(machine: Machine) -> None:
    sampler = machine.sampler(0)
    sampler.attach(PID + 1)
    sampler.tick(slow=True)
    sampler.close()
    assert sampler.series.get("process", "cpu_s") is None
    assert "pss_bytes" in sampler.absent


def test_proportional_memory_is_read_ever_more_rarely(machine: Machine) -> None:
    sampler = machine.sampler(0)
    sampler.attach(PID)
    for _ in range(400):  # 40 s
        machine.now_ns += 10**8
        sampler.tick()
    sampler.close()
    gaps = gaps_s(sampler)
    assert gaps == sorted(gaps)
    assert len(gaps) <= 6
    assert max(gaps) >= 8


def test_page_tables_of_a_large_process_are_walked_only_where_that_is_affordable(
    machine: Machine,
) -> None:
    pages = (1 << 30) // os.sysconf("SC_PAGE_SIZE")
    machine.process(rss_pages=pages)
    sampler = machine.sampler(0)
    sampler.attach(PID)
    walk_s = pages * PSS_PAGE_S
    reasons = set()
    for _ in range(round(2.5 * walk_s / PSS_BUDGET * 10)):
        machine.now_ns += 10**8
        sampler.tick()
        reasons.add(sampler.absent.get("pss_bytes"))
    sampler.close()
    assert any(reason and "page tables" in reason for reason in reasons)
    series = sampler.series.get("process", "pss_bytes")
    assert series is not None
    assert series.t_ns[0] - 10**9 >= walk_s / PSS_BUDGET * 1e9
    assert "pss_bytes" not in sampler.absent


def test_walk_that_turns_out_slow_is_repeated_later(machine: Machine) -> None:
    sampler = machine.sampler(0)
    sampler.attach(PID)
    real = sampler._process["smaps_rollup"]

    class Slow(KernelFile):
        def read(self) -> bytes | None:
            machine.now_ns += 20 * 10**6  # 20 ms, whatever was expected
            return real.read()

    sampler._process["smaps_rollup"] = Slow(real.path)
    for _ in range(300):
        machine.now_ns += 10**8
        sampler.tick()
    sampler.close()
    gaps = gaps_s(sampler)
    assert all(gap >= 0.02 / PSS_BUDGET for gap in gaps)


def test_sampler_slows_down_when_it_costs_too_much(machine: Machine) -> None:
    sampler = machine.sampler(0)

    def cost() -> int:
        machine.cost_ns += 1_500_000  # every look at the clock: a round costs 1.5 ms
        return machine.cost_ns

    sampler._cost_ns = cost
    for _ in range(300):
        sampler.tick()
    sampler.close()
    assert 0.0015 / sampler.period_s <= BUDGET
    assert sampler.period_s <= MAX_PERIOD_S


def test_cheap_sampler_keeps_its_pace(machine: Machine) -> None:
    sampler = machine.sampler(0)
    for _ in range(300):
        machine.cost_ns += 1
        sampler.tick()
    sampler.close()
    assert sampler.period_s == 0.1


def test_cgroup_version_1(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    groups = "9:name=systemd:/\n4:memory:/a\n1:cpu,cpuacct:/"
    machine.write(machine.proc / "self" / "cgroup", groups)
    machine.write(machine.sys / "fs/cgroup/memory/a/memory.usage_in_bytes", "77")
    stat = "nr_throttled 2\nthrottled_time 3000000\n"
    machine.write(machine.sys / "fs/cgroup/cpu/cpu.stat", stat)
    group = find_cgroup(machine.proc.parent)
    assert group.files["memory"].read_text() == "77"
    (file,) = group.throttled
    assert numbers(file.read_bytes())[group.throttled_key] == 3_000_000
    assert group.throttled_unit_s == 1e-9
    assert set(group.absent) == {"cgroup_memory_peak_bytes"}


NESTED = "slurm/job_7/step_0"


@pytest.mark.parametrize(
    ("groups", "files", "throttled_s"),
    [
        (  # As Linux 6.18 counted it for a busy process below a group with a quota.
            f"1:cpu:/{NESTED}",
            {
                f"cpu/{NESTED}/cpu.stat": "nr_throttled 0\nthrottled_time 0\n",
                "cpu/slurm/job_7/cpu.stat": "nr_throttled 18\nthrottled_time 252673095\n",
                "cpu/slurm/cpu.stat": "nr_throttled 0\nthrottled_time 0\n",
                "cpu/cpu.stat": "nr_throttled 0\nthrottled_time 0\n",
            },
            0.252673095,
        ),
        (  # The quota of a pod, above what its container sees.
            "0::/",
            {
                "cpu.stat": "usage_usec 9\nnr_throttled 0\nthrottled_usec 0\n",
                "cpu.stat.local": "throttled_usec 1500000\n",
                "cgroup.events": "populated 1\n",
            },
            1.5,
        ),
        (  # A session on a desktop: the controller reaches only the slice.
            "0::/user.slice/session-2.scope",
            {
                "cpu.stat": "usage_usec 9\n",
                "user.slice/cpu.stat": "usage_usec 9\nnr_throttled 4\nthrottled_usec 70\n",
                "user.slice/session-2.scope/cpu.stat": "usage_usec 9\n",
            },
            70e-6,
        ),
        (  # The controller is in use nowhere: there is no quota that could be missed.
            "0::/session-2.scope",
            {"cpu.stat": "usage_usec 9\n", "session-2.scope/cpu.stat": "usage_usec 9\n"},
            0.0,
        ),
        (  # The same of a container, above which there may be one.
            "0::/",
            {"cpu.stat": "usage_usec 9\n", "cgroup.events": "populated 1\n"},
            None,
        ),
    ],
)
def test_throttling_counts_wherever_the_quota_is(
    machine: Machine, groups: str, files: dict[str, str], throttled_s: float | None
) -> None:
    machine.write(machine.proc / "self" / "cgroup", groups)
    for name, text in files.items():
        machine.write(machine.sys / "fs/cgroup" / name, text)
    sampler = machine.sampler(0)
    sampler.tick(slow=True)
    sampler.close()
    if throttled_s is None:
        assert sampler.series.get("host", "cgroup_throttled_s") is None
        assert "do not tell" in sampler.absent["cgroup_throttled_s"]
    else:
        assert last(sampler, "host", "cgroup_throttled_s") == pytest.approx(throttled_s)
        assert "cgroup_throttled_s" not in sampler.absent


def test_a_group_that_is_removed_meanwhile_takes_nothing_back(machine: Machine) -> None:
    machine.write(machine.sys / "fs/cgroup/cpu.stat", "throttled_usec 300\n")
    sampler = machine.sampler(0)
    sampler.tick(slow=True)
    (machine.sys / "fs/cgroup/cpu.stat").write_text("")
    sampler.tick(slow=True)
    sampler.close()
    assert last(sampler, "host", "cgroup_throttled_s") == pytest.approx(300e-6)
    assert "gone" in sampler.absent["cgroup_throttled_s"]


def test_cgroup_of_a_container_whose_path_is_the_hosts(machine: Machine) -> None:
    machine.write(machine.proc / "self" / "cgroup", "0::/docker/0123")
    machine.write(machine.sys / "fs/cgroup/memory.current", "42")
    group = find_cgroup(machine.proc.parent)
    assert group.files["memory"].read_text() == "42"


def test_very_long_kernel_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "stat"
    path.write_bytes(b"x" * 200_000)
    file = KernelFile(path)
    assert file.read() == b"x" * 200_000
    file.close()
    assert file.read() is None


def test_on_this_machine(busy_process: subprocess.Popen[bytes]) -> None:
    sampler = HostSampler(sorted(os.sched_getaffinity(0)))
    sampler.attach(busy_process.pid)
    begin = time.perf_counter()
    sampler.tick()
    cpu = sampler.series.get("process", "cpu_s")
    assert cpu is not None
    # The kernel counts a process's time when it is taken off its core: on a busy machine, late.
    # And what costs more is read more rarely.
    rare_is_read = False
    while cpu.values[-1] - cpu.values[0] < 0.05 or not rare_is_read:
        assert time.perf_counter() - begin < 60
        time.sleep(0.02)
        sampler.tick()
        read = sampler.series.get("process", "pss_bytes") is not None
        rare_is_read = read or "pss_bytes" in sampler.absent
    wall_s = time.perf_counter() - begin
    sampler.tick(slow=True)
    sampler.close()
    assert cpu.values[-1] - cpu.values[0] <= 1.1 * wall_s + 0.05
    assert last(sampler, "process", "rss_bytes") >= 64 << 20
    if "pss_bytes" not in sampler.absent:
        assert last(sampler, "process", "pss_bytes") >= 60 << 20
    descriptors = len(os.listdir("/proc/self/fd"))
    HostSampler(()).close()
    assert len(os.listdir("/proc/self/fd")) == descriptors, "descriptors leak"


PARENT = """
import subprocess, sys, threading
burn = "import time\\nwhile time.process_time() < 0.6: pass\\nprint(flush=True); input()"
def child():
    with subprocess.Popen([sys.executable, "-c", burn], stdin=-1, stdout=-1, text=True) as started:
        started.stdout.readline()
        print("burnt", flush=True)
        input()
        started.communicate("")
    print("waited", flush=True)
thread = threading.Thread(target=child)
thread.start()
thread.join()
input()
"""


def test_what_the_measured_process_has_started_is_no_load_of_others() -> None:
    program = [sys.executable, "-c", PARENT]
    with subprocess.Popen(program, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sampler = HostSampler()
        sampler.attach(process.pid)
        assert process.stdout.readline() == "burnt\n"
        sampler.tick(slow=True)  # it is found
        sampler.tick()
        running_s = last(sampler, "process", "cpu_s")
        assert running_s > 0.5
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "waited\n"
        sampler.tick()
        # What it used is now its parent's, as the kernel counts: once, still.
        assert running_s <= last(sampler, "process", "cpu_s") < running_s + 0.5
        print(file=process.stdin, flush=True)
    sampler.close()
