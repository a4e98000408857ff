"""A flag that one thread raises and another, asleep on descriptors, wakes up to."""

from __future__ import annotations

import contextlib
import os


class Cancel:
    """Raised by :meth:`set`, from any thread; readable on :meth:`fileno` while it is raised.

    No lock (``threading.Event`` has one): a signal handler may raise it on top of anything.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._raised = False

    def set(self) -> None:
        """Raise the flag."""
        self._raised = True
        with contextlib.suppress(OSError):
            os.write(self._write, b"\0")

    def clear(self) -> None:
        """Lower the flag."""
        self._raised = False
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 65_536)

    def is_set(self) -> bool:
        """Whether it is raised."""
        return self._raised

    def fileno(self) -> int:
        """For selectors."""
        return self._read

    def __del__(self) -> None:
        for descriptor in (self._read, self._write):
            with contextlib.suppress(OSError):
                os.close(descriptor)
