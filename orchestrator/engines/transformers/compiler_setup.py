"""What torch's compiler for CPUs makes once for all models, kept between attempts.

::

    <cache root>/compilers/<key>/     key: torch, C++ compiler and CPU
        isa/                          programs that try out vector instructions
        headers/                      torch's headers, precompiled

torch keeps both in a temporary directory, which is a new one in each attempt: nearly half of the
time that a decoder's layer took to compile (11 of 24 s on two cores) went into making them again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from orchestrator.engines.cache import cache_root, publish
from orchestrator.host import cpu
from orchestrator.measure import InputError

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def set_up_compiler(directory: Path) -> None:
    """Let the compiler keep its graphs in ``directory``, empty, and find there what all need.

    Whoever is first makes that, in a process of its own: this one has compiled nothing after it.
    Where it cannot be made or kept, the compiler makes it when it compiles.
    """
    os.environ[_CACHE_VARIABLE] = str(directory)
    import torch
    from torch._inductor import codecache

    if torch.cuda.is_available():
        return
    try:
        kept = publish(cache_root() / "compilers" / _key(), _make)
    except (InputError, RuntimeError, subprocess.CalledProcessError):
        return  # torch's own error says more, should there be no way at all
    shutil.copytree(kept / "isa", directory, dirs_exist_ok=True)
    headers = Path(codecache._HEADER_DIR)
    headers.mkdir(parents=True, exist_ok=True)
    for file in (kept / "headers").iterdir():
        _place(file, headers / file.name)


def _place(file: Path, name: Path) -> None:
    """Have ``file`` under another name too, there at once and whole."""
    try:
        os.link(file, name)
    except FileExistsError:
        return
    except OSError:  # another file system
        with tempfile.TemporaryDirectory(dir=name.parent) as beside:
            os.replace(shutil.copy2(file, beside), name)


def _key() -> str:
    import torch
    from torch._inductor.cpp_builder import get_cpp_compiler

    compiler = get_cpp_compiler()
    version = subprocess.run([compiler, "-v"], capture_output=True, text=True, check=True).stderr
    known = (torch.__version__, compiler, version, *sorted(cpu.flags()))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:32]


def _make(final: Path) -> None:
    """Compile next to nothing, and keep what is not about it."""
    final.mkdir()
    scratch = final / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), _CACHE_VARIABLE: str(final / "isa")}
    subprocess.run(
        [sys.executable, "-m", __name__, str(scratch / "graphs")],
        env=environment,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    headers = final / "headers"
    headers.mkdir()
    for file in scratch.rglob("precompiled_headers/*.*"):
        file.rename(headers / file.name)
    shutil.rmtree(scratch)


def _compile_next_to_nothing(graphs: str) -> None:
    import torch
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    pick_vec_isa()
    os.environ[_CACHE_VARIABLE] = graphs
    torch.compile(torch.sin)(torch.zeros(64))


if __name__ == "__main__":
    _compile_next_to_nothing(sys.argv[1])
