"""A cluster of one slot in this process: real supervision, real measured processes, no Ray.

For tests that need something measured and recorded, and not the way it was distributed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from unittest import mock

from orchestrator.attempt import PlannedAttempt
from orchestrator.schedule.events import ClusterEvent
from orchestrator.schedule.placement import Node
from orchestrator.schedule.supervise import supervisor
from orchestrator.schedule.supervise.cores import pin_process
from orchestrator.schedule.supervise.supervisor import Cancellation, Grant, attempt_events

# First of all: it asks whether a cluster is a real one, and must not find ours under that name.
import_module("orchestrator.schedule.driver")


class NearCluster:
    """A :class:`~orchestrator.schedule.ports.ClusterPort`: one attempt at a time, in a thread."""

    def __init__(self) -> None:
        self._cores = os.sched_getaffinity(0)
        self._waiting: queue.Queue[PlannedAttempt | None] = queue.Queue()
        self._events: queue.Queue[ClusterEvent] = queue.Queue()
        self._cancellations: dict[str, Cancellation] = {}
        # One for all: the kernel ends a fork server with the thread that started it.
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    def now(self) -> float:
        return time.monotonic()

    def nodes(self) -> Sequence[Node]:
        return [Node("near", socket.gethostname(), len(self._cores))]

    def submit(self, attempt: PlannedAttempt) -> None:
        self._cancellations[attempt.attempt_id] = Cancellation()
        self._waiting.put(attempt)

    def wait(self, timeout_s: float) -> Sequence[ClusterEvent]:
        with contextlib.suppress(queue.Empty):
            return [self._events.get(timeout=timeout_s)]
        return []

    def cancel(self, attempt_id: str, *, force: bool) -> None:
        self._cancellations[attempt_id]._interrupted()

    def close(self) -> None:
        """End the thread and the fork server, and put this process back on its cores."""
        self._waiting.put(None)
        self._thread.join()
        pin_process(self._cores)

    def _supervise(self) -> None:
        while (wanted := self._waiting.get()) is not None:
            grant = Grant("near", len(self._cores))
            for event in attempt_events(wanted, grant, self._cancellations[wanted.attempt_id]):
                self._events.put(event)
        supervisor._warm_isolation().close()
        supervisor._warm_isolation.cache_clear()


@contextlib.contextmanager
def near() -> Iterator[None]:
    """Sweeps that this process runs meanwhile take a :class:`NearCluster` for Ray."""
    home = "orchestrator.schedule.cluster.ray.cluster"
    with mock.patch(f"{home}.PendingCluster", side_effect=lambda _: NearCluster()):
        yield
