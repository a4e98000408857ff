from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orchestrator.host import memory

Write = Callable[[dict[str, str]], Path]
ROOT = Path(__file__).resolve().parents[2]


def test_a_limit_caps_what_may_be_used(tree: Write) -> None:
    assert memory.usable_bytes(tree({})) == memory.physical_bytes()
    limited = tree({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "12345\n"})
    assert memory.usable_bytes(limited) == 12345


def test_a_limit_above_what_there_is_changes_nothing(tree: Write) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{1 << 59}\n"}
    assert memory.usable_bytes(tree(files)) == memory.physical_bytes()


def test_free_memory_and_swap_in_use(tree: Write) -> None:
    text = "MemTotal:  9 kB\nMemAvailable:  4 kB\nSwapTotal: 3 kB\nSwapFree: 1 kB\nHugePages: 0\n"
    root = tree({"proc/meminfo": text})
    assert memory.available_bytes(root) == 4096
    assert memory.swapped_bytes(root) == 2048


@pytest.mark.parametrize(
    ("group", "files"),
    [
        (
            "0::/job",
            {
                "memory.max": "8000\n",
                "memory.current": "7000\n",
                "memory.stat": "inactive_file 600\n",
            },
        ),
        (
            "4:memory:/job",
            {
                "memory.limit_in_bytes": "8000\n",
                "memory.usage_in_bytes": "7000\n",
                "memory.stat": "inactive_file 1\ntotal_inactive_file 600\n",
            },
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_free_memory_is_what_a_group_leaves(tree: Write, group: str, files: dict[str, str]) -> None:
    place = "sys/fs/cgroup/memory/job" if ":memory:" in group else "sys/fs/cgroup/job"
    root = tree({f"{place}/{name}": text for name, text in files.items()})
    tree({"proc/self/cgroup": f"{group}\n", "proc/meminfo": "MemAvailable: 9 kB\n"})
    assert memory.available_bytes(root) == 1600
    tree({"proc/meminfo": "MemAvailable: 1 kB\n"})
    assert memory.available_bytes(root) == 1024


def test_a_kernel_that_tells_nothing(tree: Write) -> None:
    assert memory.available_bytes(tree({})) is None
    assert memory.swapped_bytes(tree({})) == 0


def test_whom_the_kernel_gives_huge_pages(tree: Write) -> None:
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    assert memory.huge_pages(tree({})) is None
    assert memory.huge_pages(tree({path: "always [madvise] never\n"})) == "madvise"


def test_psutil_reads_the_same() -> None:
    assert memory.physical_bytes() == psutil.virtual_memory().total


def test_facts_of_the_host_need_the_standard_library_only() -> None:
    """A measured process in another environment reads them too."""
    names = "cgroup, cpu, memory, secrets"
    subprocess.run(
        [sys.executable, "-S", "-c", f"from orchestrator.host import {names}"], cwd=ROOT, check=True
    )
