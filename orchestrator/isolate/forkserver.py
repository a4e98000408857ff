"""The supervisor's side of a fork server: start it, talk to it, end it, say what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from orchestrator.isolate import wire
from orchestrator.isolate.linux import describe_status
from orchestrator.isolate.variables import python_module

_FAREWELL_S = 2.0
_SERVER = "orchestrator.isolate.forkserver_main"


class ServerGone(Exception):
    """The fork server has ended; the message says how."""


class ForkServer:
    """One fork server process; it is importing when the constructor returns.

    Parameters
    ----------
    preload : sequence of str
        Modules it imports before it says that it is ready.
    environment : mapping
        Its whole environment.
    python : str
        The interpreter.
    """

    def __init__(
        self, preload: Sequence[str], environment: Mapping[str, str], python: str = sys.executable
    ) -> None:
        self.preload = tuple(preload)
        self.ready: wire.Message | None = None
        self._control, theirs = wire.pair()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        command = [*python_module(_SERVER, python), str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                [*command, str(os.getpid()), json.dumps(self.preload)],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                # Out of the terminal's reach: Ctrl-C is the supervisor's to answer.
                start_new_session=True,
            )
        except BaseException:
            self._control.close()
            self._output.close()
            raise
        finally:
            theirs.close()

    def fileno(self) -> int:
        """The control channel, for selectors."""
        return self._control.fileno()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def receive(self) -> wire.Message:
        """The next message; blocks. Raises :class:`ServerGone`."""
        received = wire.receive(self._control)
        if received is None:
            raise ServerGone(self.epitaph())
        return received[0]

    def start_child(self, job: str, start: str, result: int, log: int) -> None:
        """Ask for a child; raises :class:`ServerGone`."""
        self._send({"op": "start", "job": job, "start": start}, (result, log))

    def kill_child(self, *, grace: bool = True) -> None:
        """Ask for the child and all its descendants to be killed; raises :class:`ServerGone`."""
        self._send({"op": "kill", "grace": grace})

    def _send(self, message: wire.Message, descriptors: tuple[int, ...] = ()) -> None:
        try:
            wire.send(self._control, message, descriptors)
        except OSError:
            raise ServerGone(self.epitaph()) from None

    def epitaph(self) -> str:
        """How the server ended, in one line, with the last thing it printed."""
        try:
            code = self._process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            return "the fork server no longer answers"
        how = describe_status(-code if code < 0 else code << 8)
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - 4096))
        lines = self._output.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"fork server {how}: {last}" if last else f"fork server {how}"

    def close(self) -> None:
        """End the server: ask, wait, insist. Whatever it still had forked ends with it."""
        with contextlib.suppress(OSError):
            self._control.close()
        if self.ready is None:
            self.destroy()  # it would not look up from its imports
        try:
            self._process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            self.destroy()
        self._output.close()

    def destroy(self) -> None:
        """Kill the server without asking; the kernel kills its child."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_FAREWELL_S)
