"""Limits and counters of control groups, on trees as real systems have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.host.cgroup import cpu_limit, group_of, memory_limit_bytes, oom_kills

Write = Callable[[dict[str, str]], Path]
GROUPS = "proc/self/cgroup"
FS = "sys/fs/cgroup"
SLURM = "slurm/uid_1000/job_7/step_0"

TREES = {
    "version 2, nested: Slurm limits the job, not the step": (
        {
            GROUPS: f"0::/{SLURM}\n",
            f"{FS}/{SLURM}/memory.max": "max\n",
            f"{FS}/{SLURM}/cpu.max": "max 100000\n",
            f"{FS}/slurm/uid_1000/job_7/memory.max": "8000\n",
            f"{FS}/slurm/uid_1000/job_7/cpu.max": "250000 100000\n",
            f"{FS}/slurm/memory.max": "64000\n",
        },
        8000,
        2.5,
    ),
    "version 2: what is tighter further up counts": (
        {
            GROUPS: "0::/user.slice/session.scope\n",
            f"{FS}/user.slice/session.scope/memory.max": "9000\n",
            f"{FS}/user.slice/session.scope/cpu.max": "400000 100000\n",
            f"{FS}/user.slice/memory.max": "5000\n",
            f"{FS}/user.slice/cpu.max": "50000 100000\n",
        },
        5000,
        0.5,
    ),
    "version 2: a container sees its own group as the root": (
        {GROUPS: "0::/\n", f"{FS}/memory.max": "7000\n", f"{FS}/cpu.max": "100000 100000\n"},
        7000,
        1.0,
    ),
    "version 2: the path is the host's, only the container's part is mounted": (
        {GROUPS: "0::/docker/0123\n", f"{FS}/memory.max": "7000\n", f"{FS}/cpu.max": "max 100000"},
        7000,
        None,
    ),
    "version 2: the process was moved out of its namespace's root": (
        {GROUPS: "0::/../other\n", "sys/fs/other/memory.max": "1\n", f"{FS}/memory.max": "7000\n"},
        7000,
        None,
    ),
    "version 2, a bare host: its root group has no limit files": (
        {GROUPS: "0::/user.slice\n", f"{FS}/user.slice/memory.max": "max\n"},
        None,
        None,
    ),
    "version 1, nested": (
        {
            GROUPS: f"4:memory:/{SLURM}\n3:cpu,cpuacct:/{SLURM}\n1:name=systemd:/\n0::/\n",
            f"{FS}/memory/{SLURM}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{FS}/memory/slurm/memory.limit_in_bytes": "6000\n",
            f"{FS}/memory/memory.limit_in_bytes": "9223372036854771712\n",
            f"{FS}/cpu,cpuacct/{SLURM}/cpu.cfs_quota_us": "-1\n",
            f"{FS}/cpu,cpuacct/{SLURM}/cpu.cfs_period_us": "100000\n",
            f"{FS}/cpu,cpuacct/slurm/cpu.cfs_quota_us": "300000\n",
            f"{FS}/cpu,cpuacct/slurm/cpu.cfs_period_us": "100000\n",
        },
        6000,
        3.0,
    ),
    "version 1 with a link for each controller": (
        {
            GROUPS: "3:cpuacct,cpu:/\n",
            f"{FS}/cpu/cpu.cfs_quota_us": "150000\n",
            f"{FS}/cpu/cpu.cfs_period_us": "100000\n",
        },
        None,
        1.5,
    ),
    "both: memory under version 1, CPU time under version 2": (
        {
            GROUPS: "4:memory:/job\n0::/job\n",
            f"{FS}/memory/job/memory.limit_in_bytes": "4000\n",
            f"{FS}/unified/job/cpu.max": "200000 100000\n",
        },
        4000,
        2.0,
    ),
    "no cgroups": ({}, None, None),
    "none of these controllers": ({GROUPS: "1:name=systemd:/\n"}, None, None),
}


@pytest.mark.parametrize(("files", "memory", "cpus"), TREES.values(), ids=list(TREES))
def test_the_tightest_limit_up_to_the_root_is_in_force(
    files: dict[str, str], memory: int | None, cpus: float | None, tree: Write
) -> None:
    root = tree(files)
    assert memory_limit_bytes(root) == memory
    assert cpu_limit(root) == cpus


def test_an_unreadable_limit_is_none(tree: Write) -> None:
    root = tree({GROUPS: "0::/\n", f"{FS}/memory.max": "", f"{FS}/cpu.max": "?\n"})
    assert memory_limit_bytes(root) is None
    assert cpu_limit(root) is None


def test_levels_end_at_the_mount(tree: Write) -> None:
    group = group_of("memory", tree({GROUPS: "0::/a/b\n", f"{FS}/a/b/memory.max": "1"}))
    assert group is not None
    assert [level.name for level in group.levels()] == ["b", "a", "cgroup"]


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({GROUPS: "0::/\n"}, 1),
        ({GROUPS: "0::/\n", f"{FS}/memory.events": "oom 4\noom_kill 3\noom_group_kill 9\n"}, 3),
        (
            {GROUPS: "4:memory:/a\n0::/\n", f"{FS}/memory/a/memory.oom_control": "x 0\noom_kill 2"},
            2,
        ),
        # Before Linux 4.13 the group's file does not count them.
        ({GROUPS: "4:memory:/\n", f"{FS}/memory/memory.oom_control": "under_oom 0\n"}, 1),
        ({}, 1),
    ],
)
def test_kills_are_read_from_the_group_else_of_the_machine(
    files: dict[str, str], kills: int, tree: Write
) -> None:
    assert oom_kills(tree({"proc/vmstat": "pgfault 3\noom_kill 1\n", **files})) == kills


def test_nothing_counts_kills(tree: Write) -> None:
    assert oom_kills(tree({})) is None


def test_this_machine_has_a_limit_or_none() -> None:
    for limit in (cpu_limit(), memory_limit_bytes()):
        assert limit is None or limit > 0
