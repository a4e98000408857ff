"""Command lines of ours in this process: what they print and how they end, without a new Python."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What one command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed on stdout, parsed."""
        return json.loads(self.out)


def orchestrator(directory: Path, *words: str, **variables: str) -> Answer:
    """``python -m orchestrator WORDS`` as typed in ``directory``, with ``variables`` set.

    For what needs no signal: one would reach the tests.
    """
    from orchestrator.commands.parser import main

    out, err = io.StringIO(), io.StringIO()
    here, typed = Path.cwd(), sys.argv
    with (
        environment({**os.environ, "COLUMNS": "100", **variables}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        os.chdir(directory)
        sys.argv = ["orchestrator", *words]
        try:
            code = main(words)
        finally:
            sys.argv = typed
            os.chdir(here)
    return Answer(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """This process's environment is ``values`` meanwhile; what it starts inherits it."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
