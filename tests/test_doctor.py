"""What the doctor says of a processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.doctor import _half_precision


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        ("fpu sse4_2 avx avx2 fma", True),
        ("fpu avx2 avx512f avx512bw avx512_bf16 amx_tile", False),
        ("fp asimd bf16", False),  # not x86: nothing is known against it
    ],
)
def test_a_cpu_without_instructions_for_half_precision(
    flags: str, warned: bool, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    found = list(_half_precision(cpuinfo))
    assert bool(found) is warned
    assert all(finding.level == "warn" and "quant=fp32" in str(finding.fix) for finding in found)


def test_a_system_without_cpuinfo_is_not_judged(tmp_path: Path) -> None:
    assert list(_half_precision(tmp_path / "none")) == []
