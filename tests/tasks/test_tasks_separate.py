"""Work in a process of its own: what it changes is not changed here, and how it failed is said."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest

from orchestrator.engines.separate import PYTHON_VARIABLE, own_version, run_forked
from orchestrator.measure import InputError

forked = partial(run_forked, failed="it failed", where="the file", fix="Mend it")


def test_forked_work_has_no_gpu_one_thread_and_an_environment_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    threads, said = torch.get_num_threads(), tmp_path / "said"

    def work(file: Path) -> None:
        print("words of a library")
        seen = os.environ["CUDA_VISIBLE_DEVICES"], torch.get_num_threads(), os.getpid()
        file.write_text(repr(seen))

    forked(work, said)
    gpus, there, pid = eval(said.read_text())
    assert (gpus, there) == ("", 1)
    assert pid != os.getpid()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert torch.get_num_threads() == threads
    assert capfd.readouterr() == ("", "")  # nobody wants to know where it went well


def _damaged() -> None:
    raise InputError("damaged", where="there", fix="Fetch it")


def _leave() -> None:
    print("first", file=sys.stderr)
    sys.exit("it has no tensors")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (_damaged, "there: damaged. Fetch it"),
        (_leave, "the file: it failed: it has no tensors. Mend it"),
        (lambda: [][1], "the file: it failed: IndexError: list index out of range. Mend it"),
        (_die, "the file: it failed: exit status -9. Mend it"),
    ],
)
def test_a_failure_of_forked_work_is_said_in_a_line(
    work: Callable[[], object], error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError) as raised:
        forked(work)
    assert str(raised.value) == error
    if work is _leave:
        assert "first" in capfd.readouterr().err


def test_a_version_is_that_of_the_programs_own_python(monkeypatch: pytest.MonkeyPatch) -> None:
    own_version.cache_clear()
    here = own_version("numpy")
    # As an environment's process has it: another one tells.
    monkeypatch.setenv(PYTHON_VARIABLE, str(Path(sys.executable).with_name("python3")))
    own_version.cache_clear()
    assert own_version("numpy") == here == metadata.version("numpy")
    own_version.cache_clear()
