"""A real tracking server that can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from testing.waiting import until


class TrackingServer:
    """``mlflow server`` on SQLite with proxied artifacts, on loopback.

    Parameters
    ----------
    directory : Path
        Holds its ``mlflow.db`` (which may be there already), artifacts and ``server.log``.
    variables : mapping, optional
        Its environment; by default this process's.
    """

    def __init__(self, directory: Path, variables: Mapping[str, str] = os.environ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._variables = variables
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def up(self) -> bool:
        """Whether it is meant to be there."""
        return self._process is not None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.begin()
        until(self.answers, alive=self._is_alive, said=self._log)

    def begin(self) -> None:
        """Start it without waiting."""
        from orchestrator.record.boundary import SERVER_ENVIRONMENT

        with open(self._directory / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{self._directory}/mlflow.db"),
                    *("--artifacts-destination", str(self._directory / "artifacts")),
                    *("--host", "127.0.0.1", "--port", str(self._port)),
                ],
                env={**self._variables, **SERVER_ENVIRONMENT},
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def answers(self) -> bool:
        """Whether it serves."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL to it and its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _is_alive(self) -> None:
        assert self._process is not None
        assert self._process.poll() is None, self._log()

    def _log(self) -> str:
        return (self._directory / "server.log").read_text(errors="replace")[-2000:]
