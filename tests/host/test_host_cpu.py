"""What is read of the processor, and what its user sees of emulated half precision."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.commands import findings as doctor
from orchestrator.host import cpu

Write = Callable[[dict[str, str]], Path]
INFO = "proc/cpuinfo"
CORE = "sys/devices/system/cpu/cpu{}"


@pytest.mark.parametrize(
    ("flags", "emulated"),
    [
        ("flags\t\t: fpu sse4_2 avx avx2 fma", True),
        ("flags\t\t: fpu avx2 avx512f avx512bw avx512_bf16 amx_tile", False),
        ("Features\t: fp asimd bf16", False),  # not x86: nothing is known against it
    ],
)
def test_x86_below_avx512_emulates_half_precision(flags: str, emulated: bool, tree: Write) -> None:
    root = tree({INFO: f"processor\t: 0\nmodel name\t: A Xeon\n{flags}\nbugs\t: avx512bw\n"})
    assert cpu.emulates_half_precision(root) is emulated
    assert {"fpu", "fp"} & cpu.flags(root)
    assert cpu.model(root) == "A Xeon"


def test_a_system_without_cpuinfo_is_not_judged(tree: Write) -> None:
    root = tree({})
    assert not cpu.emulates_half_precision(root)
    assert cpu.flags(root) == frozenset()
    assert cpu.governor(root) is None


def test_threads_of_one_core_have_one_place(tree: Write) -> None:
    files = {}
    for core in range(4):
        files[f"{CORE.format(core)}/topology/physical_package_id"] = "0\n"
        files[f"{CORE.format(core)}/topology/core_id"] = f"{core % 2}\n"
    root = tree({**files, f"{CORE.format(0)}/cpufreq/scaling_governor": "powersave\n"})
    assert cpu.place_of(0, root) == cpu.place_of(2, root) != cpu.place_of(1, root)
    assert cpu.place_of(9, root) == (0, 9)
    assert cpu.governor(root) == "powersave"


def test_cores_count_that_are_switched_on(tree: Write) -> None:
    # Of four cores with two threads each the second threads are off: 1, 3, 5 and 7.
    topology = {f"{CORE.format(2 * n)}/topology/core_id": f"{n}\n" for n in range(4)}
    root = tree({**topology, f"{CORE.format(1)}/online": "0\n"})
    assert cpu.physical_cores(root) == 4


def test_cores_that_the_kernel_knows_no_place_of_are_not_all_one(tree: Write) -> None:
    root = tree({f"{CORE.format(n)}/topology/core_id": "-1\n" for n in range(4)})
    assert [cpu.place_of(n, root) for n in range(4)] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert cpu.physical_cores(root) == 4


def test_this_machine() -> None:
    assert set(cpu.usable_cores()) == os.sched_getaffinity(0)
    assert 1 <= cpu.physical_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("emulated", [True, False])
def test_doctor_says_so(emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.cpu, "emulates_half_precision", lambda: emulated)
    found = list(doctor._half_precision())
    assert [finding.level for finding in found] == ["warn"] * emulated
    assert all("quant=fp32" in str(finding.fix) for finding in found)
