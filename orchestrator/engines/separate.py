"""Runs a module of ours in a process of its own, so that the measured one is as if it had not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import orchestrator
from orchestrator.measure import InputError

# Exit status of such a module that found the disk full.
NO_SPACE = 28


def run_module(module: str, *arguments: str | Path, failed: str, where: str, fix: str) -> None:
    """``python -m module arguments``, without a GPU.

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
    root = str(Path(orchestrator.__file__).resolve().parents[1])
    search_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": search_path, "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode == NO_SPACE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        last = (done.stdout.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise InputError(f"{failed}: {last[:300]}", where=where, fix=fix)
