"""``ui``: MLflow's own page on the right store."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.commands.output import echo
from orchestrator.errors import UsageError
from orchestrator.plan.expand import settings_of
from orchestrator.record import ui_arguments


def ui_command(overrides: Sequence[str], host: str, port: int) -> int:
    """Replace this process by MLflow's server on the embedded store; print a server's address."""
    tracking = settings_of(overrides, of="ui", reads=("tracking",)).tracking
    if tracking.kind == "server":
        echo(tracking.uri)
        return 0
    port = _free_port(host, port)
    arguments, environment = ui_arguments(tracking, host, port)
    # Of its two faces the UI shows the one about agents first, and remembers what was chosen.
    echo(
        f"MLflow UI on http://{host}:{port} (choose Model training at the left; Ctrl-C ends it)",
        err=True,
    )
    sys.stderr.flush()
    executable = shutil.which("mlflow", path=str(Path(sys.executable).parent)) or "mlflow"
    os.execve(executable, [executable, *arguments], {**os.environ, **environment})


def _free_port(host: str, port: int) -> int:
    """``port`` if nothing holds it, else one that is free."""
    for candidate in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UsageError(f"cannot listen on {host}", fix="--host 127.0.0.1")
