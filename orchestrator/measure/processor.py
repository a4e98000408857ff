"""What this machine's processor has instructions for, as far as Linux says."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Instruction sets by the kernel's names; empty where there is no such list."""
    return frozenset(cpuinfo.read_text(errors="replace").split() if cpuinfo.exists() else ())


def emulates_half_precision(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether products in bfloat16 and float16 fall back to loops here.

    oneDNN multiplies half precision on x86 from AVX-512 on; below it torch does not ask oneDNN. On
    a CPU with AVX2 alone a product of 512 x 512 reached 1.2 GFLOP/s, 119 in float32. Nothing is
    known against processors that are not x86.
    """
    flags = processor_flags(cpuinfo)
    return "avx2" in flags and "avx512bw" not in flags
