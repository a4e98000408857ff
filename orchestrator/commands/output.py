"""Where a command's words go: data to stdout, alone; everything else to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

import click


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print a line. Into the stream itself: left to choose, click makes ASCII streams UTF-8."""
    click.echo(text, file=sys.stderr if err else sys.stdout, nl=nl)


def emit_json(data: Any) -> None:
    """Print ``data`` as JSON on stdout."""
    echo(json.dumps(data, indent=2, sort_keys=False, allow_nan=False))


def emit(renderable: Any) -> None:
    """Print something that rich can draw on stdout."""
    from rich.console import Console

    Console(highlight=False).print(renderable)


def say(text: str) -> None:
    """Tell the user something that is not data."""
    echo(text, err=True)
