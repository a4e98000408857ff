"""Whether a joined cluster still answers, asked by ourselves: Ray would not say.

::

    a thread --GetClusterId every 2 s--> the head        silent for too long, or another cluster's
             --connect-----------------> our own raylet  refused: it is dead
                                   `--> HeadWatch.check() raises ClusterError in the driver

When the head is silent for ``RAY_gcs_rpc_server_reconnect_timeout_s`` (60 s) Ray ends the process
it is in, ours, with a message of its own and exit status 1. We give up after half of it, and let
Ray wait for longer than it was told, so that there is time to close the books. Who has a head that
comes back (on Redis) gives more time by the same variable.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Any

from orchestrator.errors import ClusterError

METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
ASK_TIMEOUT_S = 5.0
ASK_EVERY_S = 2.0
RAYS_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
RAYS_PATIENCE_S = 60.0
# Of Ray's patience, ours.
SHARE = 0.5
# What Ray gets beyond its own, in this process: for recording what was lost.
BOOKS_S = 120.0
GOES_ON = "With a cluster there, the same command goes on where this one stopped"


class Head:
    """The head at ``address`` (HOST:PORT), asked who it is; with our token and Ray's TLS."""

    def __init__(self, address: str) -> None:
        from ray._private import ray_constants
        from ray._private.grpc_utils import init_grpc_channel

        options = [
            *ray_constants.GLOBAL_GRPC_OPTIONS,
            # A head that is back is to be seen at once.
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self.address = address
        self._channel = init_grpc_channel(address, options=options)
        self._ask = self._channel.unary_unary(METHOD)

    def cluster_id(self, timeout_s: float = ASK_TIMEOUT_S) -> bytes:
        """The cluster's id as it comes over the wire; raises ``grpc.RpcError``."""
        answer: bytes = self._ask(b"", timeout=timeout_s)
        return answer

    def close(self) -> None:
        """Hang up."""
        self._channel.close()


def patience_s() -> float:
    """How long the head may be silent (s)."""
    return SHARE * _asked_s()


def more_patience() -> dict[str, str]:
    """Environment for Ray's first steps in which it lets us close the books before it ends us."""
    return {RAYS_VARIABLE: f"{_asked_s() + BOOKS_S:.0f}"}


def _asked_s() -> float:
    with contextlib.suppress(ValueError):
        return float(os.environ.get(RAYS_VARIABLE, RAYS_PATIENCE_S))
    return RAYS_PATIENCE_S


class HeadWatch:
    """Looks after the head and this driver's raylet in a thread, until :meth:`close`.

    Parameters
    ----------
    head : Head
        Is closed with the watch.
    raylet : tuple of str and int, optional
        Where the raylet of this driver listens, on this host.
    silence_s : float
        How long the head may be silent.
    every_s : float
        Between two looks.
    """

    def __init__(
        self,
        head: Head,
        raylet: tuple[str, int] | None,
        *,
        silence_s: float,
        every_s: float = ASK_EVERY_S,
    ) -> None:
        self._head = head
        self._raylet = raylet
        self._silence_s = silence_s
        self._every_s = every_s
        self._id: bytes | None = None
        self._ask_s = min(ASK_TIMEOUT_S, silence_s / 2)
        self._looked_at = time.monotonic()
        self._silent_s = 0.0
        self._gone: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look_until_closed, name="head", daemon=True)
        self._thread.start()

    @property
    def gone(self) -> bool:
        """Whether there is no cluster any more."""
        return self._gone is not None

    def check(self) -> None:
        """Raise :class:`ClusterError` if there is no cluster any more."""
        if self._gone is not None:
            where = f"cluster.address={self._head.address}"
            raise ClusterError(self._gone, where=where, fix=GOES_ON)

    def close(self) -> None:
        """Stop looking."""
        self._end.set()
        self._thread.join(ASK_TIMEOUT_S + 1)
        self._head.close()

    def _look_until_closed(self) -> None:
        while self._gone is None and not self._end.wait(self._every_s):
            self._gone = self._verdict()

    def _verdict(self) -> str | None:
        if self._raylet is not None and _refused(self._raylet):
            return "the raylet of this host died"
        import grpc

        found, answered = None, True
        try:
            found = self._head.cluster_id(self._ask_s)
        except grpc.RpcError as error:
            answered = _an_answer(error)
        now = time.monotonic()
        # A look takes no longer: the rest is a pause of ours (Ctrl-Z), not a silence of the head's.
        look_s = min(now - self._looked_at, self._every_s + self._ask_s)
        self._looked_at = now
        self._silent_s = 0.0 if answered else self._silent_s + look_s
        if self._silent_s > self._silence_s:
            return f"the head has not answered for {self._silence_s:.0f} s"
        if found is not None and found != (self._id or found):
            return "the head is that of another cluster now"
        self._id = found or self._id
        return None


def _an_answer(error: Any) -> bool:
    """Whether a server has said no: it is there."""
    import grpc

    silent = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return error.code() not in (*silent, grpc.StatusCode.CANCELLED)


def _refused(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place, ASK_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False  # slow, or out of sockets: no proof
    return False
