"""The processor: its model, its instructions, its cores and which of them may be used here."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from orchestrator.host.cgroup import ROOT


def usable_cores() -> tuple[int, ...]:
    """Cores this process may run on, by number."""
    return tuple(sorted(os.sched_getaffinity(0)))


def place_of(core: int, root: Path = ROOT) -> tuple[int, int]:
    """Package and physical core of a logical one; itself where the kernel does not tell."""
    topology = root / f"sys/devices/system/cpu/cpu{core}/topology"
    return _number(topology / "physical_package_id", 0), _number(topology / "core_id", core)


def physical_cores(root: Path = ROOT) -> int:
    """How many cores are switched on, threads of one counted once."""
    # Their numbers have gaps where threads are switched off, and those have no topology.
    found = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology")
    cores = [int(path.parent.name.removeprefix("cpu")) for path in found]
    return len({place_of(core, root) for core in cores or range(os.cpu_count() or 1)})


def governor(root: Path = ROOT) -> str | None:
    """How the first core's clock is governed; None where the kernel does not."""
    try:
        return (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def model(root: Path = ROOT) -> str | None:
    """The processor's name for itself; None where it has none."""
    found = _cpuinfo(root)
    names = (found.get(key) for key in ("model name", "hardware", "model", "cpu part"))
    return next(filter(None, names), None) or platform.processor() or None


def flags(root: Path = ROOT) -> frozenset[str]:
    """Instruction sets by the kernel's names; empty where there is no such list."""
    found = _cpuinfo(root)
    return frozenset((found.get("flags") or found.get("features") or "").split())


def emulates_half_precision(root: Path = ROOT) -> bool:
    """Whether matrix products in bfloat16 and float16 fall back to loops here.

    oneDNN multiplies half precision on x86 from AVX-512 on; below it torch does not ask oneDNN.
    Nothing is known against processors that are not x86.
    """
    known = flags(root)
    return "avx2" in known and "avx512bw" not in known


def _cpuinfo(root: Path) -> dict[str, str]:
    """What ``/proc/cpuinfo`` says of the first processor, by key in lower case."""
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip().lower(), value.strip())
    return found


def _number(path: Path, default: int) -> int:
    try:
        number = int(path.read_text())
    except (OSError, ValueError):
        return default
    return default if number < 0 else number  # -1: the kernel does not know either
