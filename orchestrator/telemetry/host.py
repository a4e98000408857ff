"""Samples the host and the measured process from outside it, as cheaply as the kernel allows.

Three tiers, by what a reading costs and how fast it changes::

    fast    every period (100 ms)    one read of /proc/PID/stat: CPU time, resident memory, faults;
                                     CPU time of what it has started; RAPL, a counter a package
    slow    every fifth period       /proc/stat, PSI, cgroup, disk bytes, swap, frequency
    rare    0.5, 1, 2, 4 ... s       PSS: smaps_rollup walks the page tables under the mmap lock,
                                     which the measured process needs for its own mappings; of a
                                     large process only as often as 0.1 % of the time allows

The sampler measures what it costs and slows itself down when that exceeds its budget.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestrator.host.cgroup import ROOT
from orchestrator.host.memory import PAGE_BYTES
from orchestrator.host.processes import descendants
from orchestrator.measure.series import SeriesSet
from orchestrator.telemetry.cgroup import find_cgroup
from orchestrator.telemetry.procfs import KernelFile, numbers
from orchestrator.telemetry.rapl import Packages

BUDGET = (
    0.002  # of one core: 0.1 % of the two-core machine that the perturbation limit is stated for
)
SLOW_EVERY = 5
MAX_PERIOD_S = 1.0
FAMILY_BUDGET = 0.0005  # of one core: looks for what the measured process has started
PSS_FIRST_S = 0.5
PSS_MAX_S = 32.0
PSS_BUDGET = 0.001  # share of time that the page-table walk may take
PSS_PAGE_S = 0.2e-6  # a page's share of the walk until measured: 55 ms for 1 GiB of 4 KiB pages

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PSI = ("cpu", "memory", "io")


class HostSampler:
    """Reads one host and one process into a :class:`SeriesSet`; ``tick`` does one round.

    Parameters
    ----------
    cpus : sequence of int
        The attempt's cores: load of others and steal are looked for there; all cores when empty.
    period_s : float
        Of the fast tier; doubled (up to 1 s) while a round costs more than ``BUDGET`` of a core.
    root : Path
        Where ``proc`` and ``sys`` are; another tree in tests.
    now_ns, cost_ns : callable
        CLOCK_MONOTONIC and this thread's CPU time; fakes in tests.
    """

    def __init__(
        self,
        cpus: Sequence[int] = (),
        *,
        period_s: float = 0.1,
        root: Path = ROOT,
        now_ns: Callable[[], int] = time.perf_counter_ns,
        cost_ns: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self.period_s = period_s
        self.series = SeriesSet(now_ns())
        self.absent: dict[str, str] = {}
        self.ticks = 0
        self.spent_s = 0.0
        proc, sys = root / "proc", root / "sys"
        self._proc, self._now_ns, self._cost_ns = proc, now_ns, cost_ns
        self._wanted = {f"cpu{n}".encode() for n in cpus} or {b"cpu"}
        self._mean_cost_s = 0.0
        self._process: dict[str, KernelFile] = {}
        self._pid: int | None = None
        self._family: dict[int, KernelFile] = {}  # stat of what it has started
        self._family_due_ns = 0
        self._cpu_s = 0.0
        self._pss_due_ns = 0
        self._pss_read_ns = 0
        self._pss_gap_s = PSS_FIRST_S
        self._pss_page_s = PSS_PAGE_S
        self._host = {"stat": KernelFile(proc / "stat")}
        self._host |= {f"psi_{k}": KernelFile(proc / "pressure" / k) for k in _PSI}
        group = find_cgroup(root)
        self._throttled = [KernelFile(path) for path in group.throttled]
        self._throttled_key, self._throttled_unit_s = group.throttled_key, group.throttled_unit_s
        self._host |= {f"cgroup_{name}": KernelFile(path) for name, path in group.files.items()}
        self.absent |= group.absent
        self._rapl = Packages(sys)
        base = sys / "devices" / "system" / "cpu"
        chosen = sorted(cpus)[:4] or [0]
        self._frequency = [
            KernelFile(base / f"cpu{n}" / "cpufreq" / "scaling_cur_freq") for n in chosen
        ]
        self._note_absent()

    def attach(self, pid: int) -> None:
        """Start following the measured process, reading everything once."""
        self._pid = pid
        root = self._proc / str(pid)
        names = ("stat", "io", "status", "smaps_rollup")
        self._process = {name: KernelFile(root / name) for name in names}
        self._pss_read_ns = self._now_ns()
        self._pss_due_ns = self._pss_read_ns + round(PSS_FIRST_S * 1e9)
        for name, metric in (("io", "disk_read_bytes"), ("io", "disk_write_bytes")):
            if reason := self._process[name].reason:
                self.absent[metric] = reason
        if reason := self._process["smaps_rollup"].reason:
            self.absent["pss_bytes"] = reason
        self.tick(slow=True)

    def tick(self, *, slow: bool | None = None) -> None:
        """One round of readings; ``slow`` None takes the slow tier every ``SLOW_EVERY`` rounds.

        Asked for with ``slow`` it never waits for the measured process, whose page tables may be
        locked for ever (a driver that holds a process of a lost GPU).
        """
        began = self._cost_ns()
        now = self._now_ns()
        self._read_process(now)
        self._read_energy(now)
        if slow or (slow is None and self.ticks % SLOW_EVERY == 0):
            self._read_slow(now)
        if not slow and now >= self._pss_due_ns and "smaps_rollup" in self._process:
            self._read_pss(now)
        self.ticks += 1
        cost_s = (self._cost_ns() - began) / 1e9
        self.spent_s += cost_s
        if slow:  # asked for at the attempt's edges: no part of the steady cost
            return
        self._mean_cost_s += 0.1 * (cost_s - self._mean_cost_s)
        if self._mean_cost_s > BUDGET * self.period_s and self.period_s < MAX_PERIOD_S:
            self.period_s = min(2 * self.period_s, MAX_PERIOD_S)

    def close(self) -> None:
        """Give every descriptor back."""
        opened = (self._host.values(), self._process.values(), self._throttled, self._frequency)
        for files in (*opened, self._family.values()):
            for file in files:
                file.close()
        self._rapl.close()

    def _read_process(self, now: int) -> None:
        data = _content(self._process, "stat")
        if data is None:
            return
        parts = _fields(data)
        add = self.series.add
        ticks = _cpu_ticks(parts)
        # After the process itself: whoever it waits for in between is missing once, never counted
        # twice, and a sum that fell for a moment does not fall.
        for pid, member in list(self._family.items()):
            if (told := member.read()) is None:
                del self._family[pid]
            else:
                ticks += _cpu_ticks(_fields(told))
        self._cpu_s = max(self._cpu_s, ticks * _TICK_S)
        add("process", "cpu_s", now, self._cpu_s, counter=True)
        add("process", "rss_bytes", now, int(parts[21]) * PAGE_BYTES)
        add("process", "minor_faults", now, int(parts[7]), counter=True)
        add("process", "major_faults", now, int(parts[9]), counter=True)

    def _read_energy(self, now: int) -> None:
        joules = self._rapl.read_j(now)
        if joules is not None:
            self.series.add("host", "rapl_energy_j", now, joules, counter=True)
        elif reason := self._rapl.absent_reason:
            self.absent["rapl_energy_j"] = reason

    def _read_slow(self, now: int) -> None:
        add = self.series.add
        stat = self._host["stat"]
        times = _cpu_times(stat.read() or b"", self._wanted)
        if isinstance(times, str):
            self.absent |= dict.fromkeys(("steal_s", "busy_s"), stat.reason or times)
        else:
            busy, steal = times
            add("host", "busy_s", now, busy * _TICK_S, counter=True)
            add("host", "steal_s", now, steal * _TICK_S, counter=True)
            add("host", "supervisor_cpu_s", now, time.process_time(), counter=True)
        for kind in _PSI:
            if data := self._host[f"psi_{kind}"].read():
                total_us = int(data.split(b"total=", 1)[1].split(None, 1)[0])
                add("host", f"psi_{kind}_s", now, total_us / 1e6, counter=True)
        self._read_cgroup(now)
        if data := _content(self._process, "io"):
            found = numbers(data)
            for key in ("read_bytes", "write_bytes"):
                add("process", f"disk_{key}", now, found[key], counter=True)
        found = numbers(_content(self._process, "status") or b"")
        if "VmHWM" in found:  # a zombie's status has no memory lines
            add("process", "rss_peak_bytes", now, found["VmHWM"] * 1024)
            swapped = found.get("VmSwap", 0) + sum(map(self._swapped_kib, self._family))
            add("process", "swap_bytes", now, swapped * 1024)
        self._find_family(now)
        clocks = [int(d) for file in self._frequency if (d := file.read())]
        if clocks:
            add("host", "cpu_frequency_hz", now, 1e3 * sum(clocks) / len(clocks))

    def _find_family(self, now: int) -> None:
        """Servers, engines and load generators that the measured process has started are ours.

        A look takes 12 us a thread: of a process with hundreds it is taken more rarely.
        """
        if self._pid is None or now < self._family_due_ns:
            return
        began = self._cost_ns()
        found = descendants(self._pid, self._proc.parent)
        self._family_due_ns = now + round((self._cost_ns() - began) / FAMILY_BUDGET)
        for pid in found:
            if pid not in self._family:
                self._family[pid] = KernelFile(self._proc / str(pid) / "stat")

    def _swapped_kib(self, pid: int) -> int:
        status = KernelFile(self._proc / str(pid) / "status")
        found = numbers(status.read() or b"")
        status.close()
        return found.get("VmSwap", 0)

    def _read_cgroup(self, now: int) -> None:
        add = self.series.add
        if "cgroup_throttled_s" not in self.absent:
            told = [
                numbers(file.read() or b"").get(self._throttled_key) for file in self._throttled
            ]
            if None in told:
                # A sum without one of them would be a fall.
                self.absent["cgroup_throttled_s"] = "a control group is gone, and its quota with it"
            else:
                seconds = sum(n or 0 for n in told) * self._throttled_unit_s
                add("host", "cgroup_throttled_s", now, seconds, counter=True)
        for name in ("memory", "memory_peak"):
            if data := _content(self._host, f"cgroup_{name}"):
                add("host", f"cgroup_{name}_bytes", now, int(data))

    def _read_pss(self, now: int) -> None:
        resident = self.series.get("process", "rss_bytes")
        if resident is None:
            return
        pages = max(1.0, resident.values[-1] / PAGE_BYTES)
        expected_s = pages * self._pss_page_s
        affordable_ns = self._pss_read_ns + round(expected_s / PSS_BUDGET * 1e9)
        if now < affordable_ns:
            self._pss_due_ns = affordable_ns
            self.absent["pss_bytes"] = (
                f"reading it would hold the page tables for {expected_s * 1e3:.0f} ms"
            )
            return
        data = self._process["smaps_rollup"].read()
        self._pss_page_s = (self._now_ns() - now) / 1e9 / pages
        self._pss_read_ns = now
        if data and "Pss" in (found := numbers(data)):
            self.series.add("process", "pss_bytes", now, found["Pss"] * 1024)
            self.absent.pop("pss_bytes", None)
        self._pss_gap_s = min(2 * self._pss_gap_s, PSS_MAX_S)
        self._pss_due_ns = now + round(self._pss_gap_s * 1e9)

    def _note_absent(self) -> None:
        for kind in _PSI:
            if reason := self._host[f"psi_{kind}"].reason:
                self.absent[f"psi_{kind}_s"] = reason
        if reason := self._rapl.absent_reason:
            self.absent["rapl_energy_j"] = reason
        if all(f.reason for f in self._frequency):
            self.absent["cpu_frequency_hz"] = "no cpufreq driver on this host"


def _fields(stat: bytes) -> list[bytes]:
    # The command name may hold spaces and parentheses: fields count from the last ')'.
    return stat[stat.rfind(b")") + 2 :].split()


def _cpu_ticks(fields: list[bytes]) -> int:
    """Of a process, and of those that it has started and waited for."""
    return sum(map(int, fields[11:15]))


def _content(files: Mapping[str, KernelFile], name: str) -> bytes | None:
    return files[name].read() if name in files else None


def _cpu_times(stat: bytes, wanted: set[bytes]) -> tuple[int, int] | str:
    """Busy (user, nice, system, irq, softirq) and steal ticks, summed over the wanted lines.

    One line why not, where one of them is missing: a core that was switched off, or a container
    that numbers its cores from 0. And where nothing was ever counted, as in a sandbox that makes
    ``/proc`` up: zeros would say that nobody else uses these cores.
    """
    busy = steal = idle = 0
    left = set(wanted)
    for line in stat.splitlines():
        if not line.startswith(b"cpu"):
            break
        parts = line.split()
        if parts[0] in left:
            left.remove(parts[0])
            user, nice, system, idling, iowait, irq, softirq, stolen = map(int, parts[1:9])
            busy += user + nice + system + irq + softirq
            steal += stolen
            idle += idling + iowait
    if left:
        return f"/proc/stat does not list {min(left).decode()}"
    return (busy, steal) if busy + idle else "/proc/stat counts nothing here"
