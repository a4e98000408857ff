"""Where a command's words go: data to stdout, alone; everything else to stderr."""

from __future__ import annotations

import json
from typing import Any

import click


def emit_json(data: Any) -> None:
    """Print ``data`` as JSON on stdout."""
    click.echo(json.dumps(data, indent=2, sort_keys=False, allow_nan=False))


def emit(renderable: Any) -> None:
    """Print something that rich can draw on stdout."""
    from rich.console import Console

    Console(highlight=False).print(renderable)


def say(text: str) -> None:
    """Tell the user something that is not data."""
    click.echo(text, err=True)
