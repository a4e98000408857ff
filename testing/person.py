"""A sweep as a person types it, in a process of its own, and what can be seen of it meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
LOOK_S = 0.2
PLANTED = "planted-4f9c1d7e2b"
# Two formats and short texts: what is proven is the way of the data, not a figure.
SWEEP = (
    "+sweep=quant",
    "quant=fp32,nf4",
    # A CPU without instructions for bfloat16 takes minutes for products in it.
    "quant.dtype=float32",
    # Of two threads each waits for the other, and where something else has its core both crawl.
    "device.threads=1",
    "task.prompt_tokens=48",
    "task.new_tokens=6",
    "task.quality_tokens=64",
    "protocol.max_time_s=3",
    # What other programs do to the cores meanwhile is marked, and refuses nothing: rules that
    # refuse have tests of their own.
    "verdict=off",
    "ceilings=off",
)


@dataclass
class Swept:
    """What came of it.

    Attributes
    ----------
    place : Path
        Where it was typed.
    listening : set of str
        Addresses on which it or what it started took connections.
    modes : dict of str to int
        Permission bits of every file of a spool that was seen, by its path in ``place``.
    """

    place: Path
    code: int
    out: str
    err: str
    listening: set[str] = field(default_factory=set)
    modes: dict[str, int] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        """What it printed on stdout, parsed."""
        return json.loads(self.out)

    @property
    def files(self) -> list[Path]:
        """Every file that it left."""
        return [path for path in self.place.rglob("*") if path.is_file()]

    def copied(self, to: Path) -> Path:
        """A copy of its directory, to be written to."""
        return Path(shutil.copytree(self.place, to / "copy"))


def sweep(place: Path, words: Sequence[str], **variables: str) -> Swept:
    """``python -m orchestrator WORDS`` in ``place``, watched until it ends; with no umask."""
    running = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=place,
        env={
            **os.environ,
            "XDG_STATE_HOME": str(place / "state"),
            "PYTHONPATH": str(ROOT),
            **variables,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        umask=0,
    )
    swept = Swept(place, -1, "", "")
    family = psutil.Process(running.pid)
    try:
        while running.poll() is None:
            swept.listening |= _listening(family)
            for path in (place / "mlruns").rglob("*"):
                name = str(path.relative_to(place))
                if "spool" in name:
                    with contextlib.suppress(FileNotFoundError):
                        swept.modes[name] = stat.S_IMODE(path.lstat().st_mode)
            time.sleep(LOOK_S)
    finally:
        running.kill()
        swept.out, swept.err = running.communicate()
    swept.code = running.returncode
    return swept


def _listening(process: psutil.Process) -> set[str]:
    found = set()
    with contextlib.suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                for connection in one.net_connections(kind="inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        found.add(connection.laddr.ip)
    return found
