"""Energy of the CPU packages from RAPL: each package's counter wraps by itself.

The kernel's powercap tree has a zone a package (``intel-rapl:0``, on AMD too), with parts of it
below (``intel-rapl:0:0``: cores, memory) and, on some machines, one for the whole board (``psys``).
The packages are summed; the parts and the board would count the same energy twice.
"""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.telemetry.procfs import KernelFile

_ZONE = re.compile(r"intel-rapl:\d+")

# No package draws as much. A counter that fell and would have gained more was set back, as a
# machine that slept does, and has not wrapped.
MOST_PACKAGE_W = 5_000.0


class Packages:
    """Sums what the packages of one machine used, wraps undone.

    Parameters
    ----------
    root : Path
        The machine's ``/sys``; another tree in tests.

    Attributes
    ----------
    absent_reason : str or None
        Why there is nothing to read, or no longer.
    """

    def __init__(self, root: Path) -> None:
        zones = [
            zone
            for zone in (root / "class" / "powercap").glob("intel-rapl:*")
            if _ZONE.fullmatch(zone.name) and _text(zone / "name") != "psys"
        ]
        self._packages = [_Package(zone) for zone in sorted(zones)]
        self.absent_reason = next(
            (p.counter.reason for p in self._packages if p.counter.reason),
            None if zones else "this CPU has no RAPL counters here",
        )

    def read_j(self, now_ns: int) -> float | None:
        """Joules of all packages since some moment, never falling; None where one cannot tell."""
        if self.absent_reason is not None:
            return None
        for package in self._packages:
            reason = package.read(now_ns)
            if reason is not None:
                # A sum without one of them would be a fall, and later a jump.
                self.absent_reason = reason
                return None
        return sum(package.used_uj for package in self._packages) / 1e6

    def close(self) -> None:
        """Give every descriptor back."""
        for package in self._packages:
            package.counter.close()


class _Package:
    def __init__(self, zone: Path) -> None:
        self.counter = KernelFile(zone / "energy_uj")
        text = _text(zone / "max_energy_range_uj")
        self._range_uj = int(text) if text.isdigit() else None
        self._seen: tuple[int, int] | None = None  # when, and what it said
        self.used_uj = 0

    def read(self, now_ns: int) -> str | None:
        """Take a reading; one line where it says nothing."""
        data = self.counter.read()
        if data is None or not data.strip().isdigit():
            return self.counter.reason or f"{self.counter.path}: not a number"
        said = int(data)
        if self._seen is None:
            self.used_uj = said
        else:
            then_ns, before = self._seen
            gained = said - before
            if gained < 0:
                gained += self._range_uj or 0
                most = MOST_PACKAGE_W * max(now_ns - then_ns, 1) / 1e3
                if not 0 <= gained <= most:
                    return f"{self.counter.path}: went backwards and did not wrap"
            self.used_uj += gained
        self._seen = now_ns, said
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
