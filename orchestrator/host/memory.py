"""How much memory this machine has, and how much of it is free or may be used here."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.host.cgroup import ROOT, memory_left_bytes, memory_limit_bytes

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def physical_bytes() -> int:
    """All memory of the machine."""
    return PAGE_BYTES * os.sysconf("SC_PHYS_PAGES")


def usable_bytes(root: Path = ROOT) -> int:
    """Memory this process may use: the machine's, or as much as its control groups allow."""
    limit = memory_limit_bytes(root)
    return physical_bytes() if limit is None else min(limit, physical_bytes())


def available_bytes(root: Path = ROOT) -> int | None:
    """What new processes can have without swapping, as the kernel and the control groups say."""
    found = (_meminfo(root).get("MemAvailable"), memory_left_bytes(root))
    return min((each for each in found if each is not None), default=None)


def swapped_bytes(root: Path = ROOT) -> int:
    """How much of the swap space is in use."""
    found = _meminfo(root)
    return found.get("SwapTotal", 0) - found.get("SwapFree", 0)


def huge_pages(root: Path = ROOT) -> str | None:
    """To whom the kernel gives them (``always``, ``madvise``); None where it does not say."""
    try:
        text = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    return next((word[1:-1] for word in text.split() if word.startswith("[")), None)


def _meminfo(root: Path) -> dict[str, int]:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    words = (line.replace(":", " ").split() for line in lines)
    return {found[0]: int(found[1]) * 1024 for found in words if found[2:] == ["kB"]}
