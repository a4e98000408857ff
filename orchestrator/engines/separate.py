"""Runs work of ours in a process of its own, so that the measured one is as if it had not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orchestrator
from orchestrator.measure import InputError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

# Exit status of such a module that found the disk full.
NO_SPACE = 28
#: Names this program's own Python to an attempt whose environment has another.
PYTHON_VARIABLE = "ORCHESTRATOR_PYTHON"


def in_own_python() -> bool:
    """Whether this is the program's own Python, and not that of a trial's environment."""
    return os.environ.get(PYTHON_VARIABLE, sys.executable) == sys.executable


@cache
def own_version(distribution: str) -> str:
    """Which version of a package this program's own Python has: what it makes is kept by it."""
    if in_own_python():
        return metadata.version(distribution)
    asked = f"from importlib import metadata; print(metadata.version({distribution!r}))"
    command = [os.environ[PYTHON_VARIABLE], "-c", asked]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def own_command(module: str, *arguments: str | Path) -> tuple[list[str], dict[str, str]]:
    """``python -m module arguments`` by this program's own Python: the words and the variables."""
    root = str(Path(orchestrator.__file__).resolve().parents[1])
    search_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return (
        [os.environ.get(PYTHON_VARIABLE, sys.executable), "-m", module, *map(str, arguments)],
        {**os.environ, "PYTHONPATH": search_path, "CUDA_VISIBLE_DEVICES": ""},
    )


def run_module(module: str, *arguments: str | Path, failed: str, where: str, fix: str) -> None:
    """``python -m module arguments`` by this program's own Python, without a GPU.

    Parameters
    ----------
    failed, where, fix : str
        The error where it fails; its last line of output is added to ``failed``.

    Raises
    ------
    InputError
        If it fails.
    OSError
        If the disk is full.
    """
    command, variables = own_command(module, *arguments)
    done = subprocess.run(
        command,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode == NO_SPACE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if done.returncode != 0:
        raise _failure(done.stdout, done.returncode, failed, where, fix)


def exits_for_a_full_disk(main: Callable[..., None], *arguments: Any) -> None:
    """``main(*arguments)`` of such a module, whose status tells of a full disk."""
    try:
        main(*arguments)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sys.exit(NO_SPACE)
        raise


def run_forked(
    work: Callable[..., object], *arguments: Any, failed: str, where: str, fix: str
) -> None:
    """``work(*arguments)`` in a fork of this process, without a GPU and with one thread of torch's.

    What is imported here is not imported again: with torch and transformers that takes seconds.

    Parameters
    ----------
    failed, where, fix : str
        As of :func:`run_module`.

    Raises
    ------
    InputError
        The one that ``work`` raised, or that it failed in another way.
    """
    import multiprocessing

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    with ours, tempfile.TemporaryFile("w+", errors="replace") as output:
        process = context.Process(target=_forked, args=(work, arguments, theirs, output.fileno()))
        process.start()
        try:
            theirs.close()
            error: InputError | None = ours.recv()
        except EOFError:  # ended without a word
            error = None
        else:
            process.join()
            if error is None:
                return
        finally:
            process.kill()
            process.join()
        output.seek(0)
        text = output.read()
        if error is not None:
            sys.stderr.write(text)
            raise error
        raise _failure(text, process.exitcode or 0, failed, where, fix)


def _forked(
    work: Callable[..., object], arguments: tuple[Any, ...], answer: Connection, output: int
) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = open(  # noqa: SIM115 - until the process ends
        2, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)  # OpenMP's other threads, if it had any, are not in a fork
    try:
        work(*arguments)
    except InputError as error:
        answer.send(error)
    else:
        answer.send(None)


def _failure(output: str, status: int, failed: str, where: str, fix: str) -> InputError:
    sys.stderr.write(output)
    last = (output.strip().splitlines() or [f"exit status {status}"])[-1]
    return InputError(f"{failed}: {last[:300]}", where=where, fix=fix)
