"""Demands against nodes: what fits, what never will, and what is said then."""

from __future__ import annotations

import pytest

from orchestrator.attempt import Resources
from orchestrator.errors import ClusterError
from orchestrator.schedule.placement import Node, resolve, slots, slots_on

CPU_SMALL = Node("c1", "small", 8, memory_bytes=16 << 30)
CPU_LARGE = Node("c2", "large", 64, memory_bytes=256 << 30)
GPU = Node("g1", "gpu", 64, 8, 512 << 30, frozenset({"H100"}))


def test_slots() -> None:
    assert slots_on(CPU_LARGE, Resources(cpus=8)) == 8
    assert slots_on(GPU, Resources(2, 8)) == 4
    assert slots_on(GPU, Resources(1, 32)) == 2
    assert slots_on(CPU_SMALL, Resources(cpus=1, memory_bytes=10 << 30)) == 1
    assert slots_on(GPU, Resources(1, 1, accelerator="A100")) == 0
    assert slots([CPU_SMALL, CPU_LARGE, GPU], Resources(cpus=8)) == 1 + 8 + 8


def test_a_whole_node_is_the_smallest_without_gpus() -> None:
    assert resolve(Resources(), [GPU, CPU_LARGE, CPU_SMALL]) == Resources(cpus=8)
    assert resolve(Resources(memory_bytes=64 << 30), [GPU, CPU_LARGE, CPU_SMALL]).cpus == 64
    assert resolve(Resources(), [GPU]) == Resources(cpus=64)


def test_a_gpu_gets_its_share_of_cores() -> None:
    assert resolve(Resources(gpus=1), [GPU, CPU_SMALL]) == Resources(1, 8)
    assert resolve(Resources(gpus=4), [GPU]).cpus == 32
    assert resolve(Resources(gpus=4, cpus=3), [GPU]).cpus == 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Resources(gpus=16), "no node has 16 GPUs"),
        (Resources(gpus=1, accelerator="B200"), "1 B200"),
        (Resources(cpus=65), "65 CPU cores"),
        (Resources(cpus=1, memory_bytes=1 << 41), "2048.0 GiB memory"),
    ],
)
def test_infeasible_is_refused_with_the_largest_node(asked: Resources, said: str) -> None:
    with pytest.raises(ClusterError) as refused:
        resolve(asked, [CPU_SMALL, GPU])
    assert said in str(refused.value)
    assert "(gpu) has 8 H100 GPUs, 64 CPU cores, 512.0 GiB memory" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_cluster_without_nodes() -> None:
    with pytest.raises(ClusterError, match="no nodes"):
        resolve(Resources(), [])
