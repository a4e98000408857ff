"""Which processors multiply half precision in loops, and where a person is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.commands import doctor
from orchestrator.measure.processor import emulates_half_precision


@pytest.mark.parametrize(
    ("flags", "emulated"),
    [
        ("fpu sse4_2 avx avx2 fma", True),
        ("fpu avx2 avx512f avx512bw avx512_bf16 amx_tile", False),
        ("fp asimd bf16", False),  # not x86: nothing is known against it
    ],
)
def test_x86_below_avx512_emulates_half_precision(
    flags: str, emulated: bool, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert emulates_half_precision(cpuinfo) is emulated


def test_a_system_without_cpuinfo_is_not_judged(tmp_path: Path) -> None:
    assert not emulates_half_precision(tmp_path / "none")


@pytest.mark.parametrize("emulated", [True, False])
def test_doctor_says_so(emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "emulates_half_precision", lambda: emulated)
    found = list(doctor._half_precision())
    assert [finding.level for finding in found] == ["warn"] * emulated
    assert all("quant=fp32" in str(finding.fix) for finding in found)
