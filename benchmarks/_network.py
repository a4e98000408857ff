"""A host of its own as far as the network can tell: a namespace at the end of a cable.

::

    this host --- cw1234 ===== cw1234n --- namespace cw1234 (default route back to this host)
                    `- taken down by cut(), put up by mend()
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_CLONE_NEWNET = 0x40000000


class Unavailable(Exception):
    """Network namespaces cannot be made here; says why."""


class Island:
    """A network namespace with one cable to this host; a context manager.

    Raises
    ------
    Unavailable
        Not root, no ``ip``, or a kernel without namespaces or virtual cables.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise Unavailable("network namespaces take root and iproute2")
        self._name = f"cw{os.getpid()}"
        third, fourth = random.randrange(256), 4 * random.randrange(64)
        host = f"10.{random.randrange(200, 250)}.{third}.{fourth + 1}"
        self.address = f"{host.rpartition('.')[0]}.{fourth + 2}"
        inside = f"{self._name}n"
        try:
            _ip("netns", "add", self._name)
            _ip("link", "add", self._name, "type", "veth", "peer", "name", inside)
            _ip("link", "set", inside, "netns", self._name)
            _ip("address", "add", f"{host}/30", "dev", self._name)
            _ip("link", "set", self._name, "up")
            within = ("-n", self._name)
            _ip(*within, "link", "set", "lo", "up")
            _ip(*within, "address", "add", f"{self.address}/30", "dev", inside)
            _ip(*within, "link", "set", inside, "up")
            _ip(*within, "route", "add", "default", "via", host)
        except subprocess.CalledProcessError as error:
            self.close()
            raise Unavailable(str(error.stderr).strip()) from None

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and the processes it starts meanwhile, are on the island."""
        with open("/proc/thread-self/ns/net") as home:
            with open(f"/run/netns/{self._name}") as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def cut(self) -> None:
        """Nothing gets through any more."""
        _ip("link", "set", self._name, "down")

    def mend(self) -> None:
        """The cable is whole again."""
        _ip("link", "set", self._name, "up")

    def close(self) -> None:
        """Remove it; processes that are still on it stay there, without a network."""
        for words in (("link", "del", self._name), ("netns", "del", self._name)):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(*words)
        assert not Path(f"/run/netns/{self._name}").exists()

    def __enter__(self) -> Island:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _enter(namespace: int) -> None:
    # os.setns is there from Python 3.12 on.
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
