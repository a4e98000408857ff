"""What the compiler needs for any graph: made once, whole, and no graph with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.engines.transformers import check_compile, compiler_setup
from orchestrator.measure import InputError

pytestmark = pytest.mark.skipif(
    check_compile({"device": {"kind": "cpu"}}, True) is not None, reason="no C++ compiler here"
)
# In a process of its own, as an attempt is: where it keeps its temporary files, it is alone.
ATTEMPT = """
import sys
from pathlib import Path
from orchestrator.engines.transformers.compiler_setup import set_up_compiler
set_up_compiler(Path(sys.argv[1]))
import torch
print(torch.compile(torch.cos)(torch.zeros(8)).sum().item())
from torch._dynamo.utils import counters
print(counters["inductor"]["fxgraph_cache_hit"], counters["aot_autograd"]["autograd_cache_hit"])
"""


@pytest.mark.xdist_group("compiler")
@pytest.mark.usefixtures("shared_compiler")
def test_an_attempt_compiles_with_what_is_kept_and_finds_no_graph(
    cache: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPT, str(tmp_path / "compiled")],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["8.0", "0", "0"]
    (kept,) = (cache / "compilers").iterdir()
    assert sorted(p.name for p in kept.iterdir()) == ["headers", "isa"]
    # The same file: nothing was compiled in its place.
    (header,) = kept.glob("headers/*.gch")
    (there,) = tmp_path.rglob("*.gch")
    assert there.samefile(header)
    tried = {p.relative_to(kept / "isa") for p in kept.glob("isa/*/*.so")}
    compiled = tmp_path / "compiled"
    assert tried
    assert tried < {p.relative_to(compiled) for p in compiled.glob("*/*.so")}


@pytest.mark.parametrize(
    "error", [InputError("no space left"), subprocess.CalledProcessError(1, "python")]
)
def test_where_it_cannot_be_made_the_compiler_is_left_to_itself(
    error: Exception, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(final: Path) -> None:
        final.mkdir()
        raise error

    monkeypatch.setattr(compiler_setup, "_make", fail)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "before")
    compiler_setup.set_up_compiler(tmp_path / "compiled")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    assert list((cache / "compilers").iterdir()) == []


def test_a_header_is_placed_whole_on_another_file_system_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.h"
    source.write_text("whole")
    compiler_setup._place(source, tmp_path / "linked.h")
    assert (tmp_path / "linked.h").samefile(source)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    compiler_setup._place(source, tmp_path / "copied.h")
    assert (tmp_path / "copied.h").read_text() == "whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copied.h", "linked.h", "source.h"]


def test_a_header_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.h").write_text("mine")
    (tmp_path / "other.h").write_text("other")
    compiler_setup._place(tmp_path / "mine.h", tmp_path / "other.h")
    assert (tmp_path / "other.h").read_text() == "other"
