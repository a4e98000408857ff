"""Reads kernel files again and again through descriptors kept open."""

from __future__ import annotations

import os
from pathlib import Path

_READ_BYTES = 1 << 16


class KernelFile:
    """One kernel file read many times; a file that cannot be read says why, once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reason: str | None = None
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.reason = f"{path}: {(error.strerror or str(error)).lower()}"

    def read(self) -> bytes | None:
        """The whole content, or None with ``reason`` set (a process that ended, no permission)."""
        if self._fd < 0:
            return None
        try:
            data = os.pread(self._fd, _READ_BYTES, 0)
        except OSError as error:
            self.reason = f"{self.path}: {(error.strerror or str(error)).lower()}"
            self.close()
            return None
        if len(data) == _READ_BYTES:  # /proc/stat of a very large machine
            at = len(data)
            while chunk := os.pread(self._fd, _READ_BYTES, at):
                data, at = data + chunk, at + len(chunk)
        return data

    def close(self) -> None:
        """Give the descriptor back; reading again answers None."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def numbers(data: bytes) -> dict[str, int]:
    """``key value [kB]`` lines (``cpu.stat``, ``io``, ``status``) as integers; others left out."""
    found = {}
    for line in data.splitlines():
        parts = line.split()
        if len(parts) >= 2 and parts[1].isdigit():
            found[parts[0].rstrip(b":").decode()] = int(parts[1])
    return found
