"""A host of its own as far as the network can tell: a namespace at the end of a cable.

::

    this host --- cw1234 ===== cw1234n --- namespace cw1234 (default route back to this host)
                    `- taken down by cut(), put up by mend()
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000


class Unavailable(Exception):
    """Network namespaces cannot be made here; says why."""


class Island:
    """A network namespace with one cable to this host; a context manager.

    Attributes
    ----------
    address : str
        Its own, at its end of the cable.
    home : str
        This host's, which it reaches through the cable.

    Raises
    ------
    Unavailable
        Not root, no ``ip``, or a kernel without namespaces or virtual cables.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise Unavailable("network namespaces take root and iproute2")
        self.home = _outward_address()
        self._name = f"cw{os.getpid()}"
        # Of 198.18.0.0/15, which is for tests and in nobody's routes (RFC 2544).
        first = int(ipaddress.IPv4Address("198.18.0.0")) + 4 * random.randrange(2**15)
        host, self.address = (str(ipaddress.IPv4Address(first + i)) for i in (1, 2))
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

    def __enter__(self) -> Island:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _outward_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError as error:
            raise Unavailable(f"no route out of this host ({error})") from None
        return str(probe.getsockname()[0])


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _enter(namespace: int) -> None:
    # os.setns is there from Python 3.12 on.
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
