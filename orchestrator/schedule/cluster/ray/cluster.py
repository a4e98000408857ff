"""Ray: start one here or connect to one, run attempts on it, leave nothing behind.

Ray's errors become outcomes or ``ClusterError`` here and in :mod:`.session`. Ray is imported when a
cluster is started, never before.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.attempt import Outcome, PlannedAttempt
from orchestrator.errors import ClusterError, Interrupted
from orchestrator.schedule.cluster.ray import aftermath
from orchestrator.schedule.cluster.ray.affinity import ModelAffinity
from orchestrator.schedule.cluster.ray.connection import RayConnection
from orchestrator.schedule.cluster.ray.worker import fetch_report, supervise
from orchestrator.schedule.events import ClusterEvent, Ended, Started, Vanished
from orchestrator.schedule.placement import Node

if TYPE_CHECKING:
    from orchestrator.plan.schema import ClusterConfig

START_TIMEOUT_S = 120.0
# What is ready is here at once; only a cluster that falls apart makes us wait for it.
GET_TIMEOUT_S = 5.0
# It answers in milliseconds; one that does not shall not hold up what ends meanwhile.
HEAD_TIMEOUT_S = 1.0
# For all that run at the end; telling one takes less than a millisecond.
CANCEL_TIMEOUT_S = 5.0
# Ray labels every node that has GPUs with their kind.
ACCELERATOR_LABEL = "ray.io/accelerator-type"
NODE_LABEL = "ray.io/node-id"
# A node's first process unpacks our code, and may start while a hundred others do.
ASK_TIMEOUT_S = 120.0

T = TypeVar("T")


class RayCluster:
    """A :class:`~orchestrator.schedule.ports.ClusterPort` on Ray.

    A :class:`PendingCluster` makes one and closes it.
    """

    def __init__(self, session: RayConnection) -> None:
        import ray

        self._ray = ray
        self._session = session
        self._generators: dict[Any, str] = {}
        self._by_attempt: dict[str, Any] = {}
        self._cancelled: set[str] = set()
        self._identities: dict[str, Mapping[str, Any]] = {}
        self._homes = ModelAffinity()
        self._asked: concurrent.futures.Future[list[dict[str, Any]]] | None = None
        self._seen: Sequence[Node] = ()
        self._known: set[str] = set()
        self._with_gpus: set[str] = set()
        self._task = ray.remote(
            num_returns="streaming",
            # A worker per GPU task (Ray's default) would pay for a new fork server every time.
            max_calls=0,
            # Ray's retries never surface, and loop for ever over a host out of memory.
            max_retries=0,
        )(supervise)

    # -- the port ---------------------------------------------------------------------------

    def now(self) -> float:
        return time.monotonic()

    def nodes(self) -> Sequence[Node]:
        """The nodes alive now, or lately: a head that is slow to answer holds up nothing else."""
        self._session.check()
        if self._asked is None:
            self._asked = self._session.questions.begin(self._ray.nodes)
        while not concurrent.futures.wait((self._asked,), timeout=HEAD_TIMEOUT_S).done:
            self._session.check()
            if self._seen:
                return self._seen
        asked, self._asked = self._asked, None
        try:
            entries = asked.result()
        except Exception as error:
            if self._seen:
                return self._seen  # whether the head is gone for good, the session says
            raise ClusterError(f"the head does not name its nodes: {_last_line(error)}") from error
        found = [_node(entry) for entry in entries if entry["Alive"]]
        alive = {node.node_id for node in found}
        for node_id in self._known - alive:
            self._homes.lost(node_id)
        self._known = alive
        self._with_gpus = {node.node_id for node in found if node.gpus}
        self._seen = found
        return found

    def submit(self, attempt: PlannedAttempt) -> None:
        demand, identity = attempt.trial.resources, attempt.trial.identity
        options: dict[str, Any] = {
            "num_cpus": demand.cpus,
            "num_gpus": demand.gpus,
            "name": f"attempt {attempt.trial.hash[:12]} #{attempt.number}",
        }
        if demand.memory_bytes:
            options["memory"] = demand.memory_bytes
        labels: dict[str, str] = {}
        if demand.accelerator:
            labels[ACCELERATOR_LABEL] = demand.accelerator
        for place in attempt.places[:1]:
            labels[NODE_LABEL] = f"in({','.join(sorted(place - attempt.avoid))})"
        if attempt.avoid and not attempt.places:
            labels[NODE_LABEL] = f"!in({','.join(sorted(attempt.avoid))})"
        if labels:
            options["label_selector"] = labels
        elif (home := self._homes.best(identity)) is not None and (
            demand.gpus or home not in self._with_gpus
        ):
            options["scheduling_strategy"] = self._preference(home)
        self._identities[attempt.attempt_id] = identity
        # The first one hands our function to the head.
        generator = self._session.call(lambda: self._task.options(**options).remote(attempt))
        self._generators[generator] = attempt.attempt_id
        self._by_attempt[attempt.attempt_id] = generator

    def wait(self, timeout_s: float) -> Sequence[ClusterEvent]:
        if not self._generators:
            time.sleep(timeout_s)
            self._session.check()
            return []
        return self._session.call(lambda: self._wait(timeout_s))

    def _wait(self, timeout_s: float) -> Sequence[ClusterEvent]:
        waitables = list(self._generators)
        ready, _ = self._ray.wait(waitables, num_returns=1, timeout=timeout_s)
        self._session.check()
        if ready and len(waitables) > 1:
            # Whatever else is there by now, without waiting for it.
            ready, _ = self._ray.wait(waitables, num_returns=len(waitables), timeout=0)
        return [event for generator in ready if (event := self._next(generator)) is not None]

    def cancel(self, attempt_id: str, *, force: bool) -> None:
        generator = self._by_attempt.get(attempt_id)
        if generator is None:
            return
        self._cancelled.add(attempt_id)
        # Where the cluster is gone, whoever asks for something else will hear of it.
        with contextlib.suppress(ClusterError):
            self._session.call(lambda: self._cancel(generator, force=force))

    def _cancel(self, *generators: Any, force: bool) -> None:
        for generator in generators:
            # It may have ended, or Ray itself may be gone: then there is nothing to cancel.
            with contextlib.suppress(self._ray.exceptions.RayError, ValueError, RuntimeError):
                self._ray.cancel(generator, force=force)

    def ask_every_node(self, question: Callable[[], T]) -> dict[str, T]:
        """What ``question()`` returns in a process of each node that is alive, by node id.

        Raises
        ------
        ClusterError
            A node cannot be asked: names it.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = os.getcwd()
        task = self._ray.remote(num_cpus=0, max_retries=1)(question)
        asked = {
            node.node_id: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            ).remote()
            for node in self.nodes()
        }
        hosts = {node.node_id: node.host for node in self.nodes()}
        answers = {}
        deadline = time.monotonic() + ASK_TIMEOUT_S
        for node_id, answer in asked.items():
            try:
                left_s = max(0.1, deadline - time.monotonic())
                answers[node_id] = self._ray.get(answer, timeout=left_s)
            except Exception as error:
                if all(node.node_id != node_id for node in self.nodes()):
                    continue  # gone meanwhile: nothing will run there
                what = translate(error)[1]
                if isinstance(error, self._ray.exceptions.GetTimeoutError):
                    what = f"nothing ran there within {ASK_TIMEOUT_S:.0f} s"
                raise ClusterError(what, where=f"node {hosts.get(node_id, node_id)}") from error
        # For the first task of a submitted job Ray unpacks the working directory once more, over
        # the one that we are in.
        with contextlib.suppress(OSError):
            os.chdir(here)
        return answers

    # -- its life ---------------------------------------------------------------------------

    def abandon(self) -> None:
        """End whatever still runs there, before the connection goes."""
        left = list(self._generators)
        if left:
            # Also in a cluster without a head: its nodes measure on, and hear us. All at once, for
            # a dead raylet of our own may keep us waiting for each.
            told = self._session.calls.begin(lambda: self._cancel(*left, force=True))
            concurrent.futures.wait((told,), timeout=CANCEL_TIMEOUT_S)
        self._generators.clear()
        self._by_attempt.clear()
        self._identities.clear()

    # -- inside -----------------------------------------------------------------------------

    def _preference(self, node_id: str) -> Any:
        """That node if it has a free slot at the moment of placing, else any."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node_id, soft=True, _spill_on_unavailable=True)

    def _next(self, generator: Any) -> ClusterEvent | None:
        attempt_id = self._generators[generator]
        try:
            event: ClusterEvent = self._ray.get(next(generator), timeout=GET_TIMEOUT_S)
        except self._ray.exceptions.GetTimeoutError:
            # Its node is going: Ray will end the stream with an error when it is sure.
            return None
        except StopIteration:
            # Only a cancelled supervisor ends without a last event.
            event = Vanished(attempt_id, Outcome.CANCELLED, "cancelled")
        except Exception as error:
            event = Vanished(attempt_id, *translate(error))
        if isinstance(event, Vanished) and attempt_id in self._cancelled:
            with contextlib.suppress(Exception):  # the head may be gone, and its store with it
                report = fetch_report(attempt_id)
                event = event if report is None else Ended(attempt_id, report)
        if isinstance(event, Started):
            self._homes.began(self._identities[attempt_id], event.slot.node_id)
        if isinstance(event, Ended | Vanished):
            del self._generators[generator]
            del self._by_attempt[attempt_id]
            del self._identities[attempt_id]
            self._cancelled.discard(attempt_id)
        return event


class PendingCluster(RayConnection):
    """A cluster that is coming up while something else is done; a context manager that ends it.

    Begins to start (or reach) it and returns at once: plan meanwhile.
    """

    _cluster: RayCluster | None = None

    def ready(
        self, timeout_s: float = START_TIMEOUT_S, *, stop: threading.Event | None = None
    ) -> RayCluster:
        """The cluster, once it is up.

        Raises
        ------
        ClusterError
            It cannot be had, or did not come up in ``timeout_s``.
        Interrupted
            ``stop`` was set meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        while not self.wait(0.05):
            if stop is not None and stop.is_set():
                raise Interrupted("stopped while the cluster was starting")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"Ray did not come up within {timeout_s:.0f} s", fix="See cluster.address"
                )
        if self._cluster is None:
            self._cluster = RayCluster(self)
            _take_signal_back()
        return self._cluster

    def is_for(self, settings: ClusterConfig) -> bool:
        """Whether it is the one that ``settings`` describe, and not closed."""
        return self._settings == settings and not self._end.is_set()

    def close(self) -> None:
        """End the cluster, up or not; one that was started here goes with all its processes."""
        if self._cluster is not None:
            self._cluster.abandon()
        super().close()

    def __enter__(self) -> PendingCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_joined: PendingCluster | None = None


def _take_signal_back() -> None:
    """Put our handler of SIGTERM before Ray's, which prints a stack and aborts 3 s later."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def joined(settings: ClusterConfig) -> PendingCluster:
    """A cluster that stands, joined once for whatever is asked of it and run on it.

    Joining takes seconds. Closed by whoever is the last to use it, else with the process.
    """
    global _joined
    if _joined is None or not _joined.is_for(settings):
        _joined = PendingCluster(settings)
    return _joined


def cluster_device_kind(settings: ClusterConfig) -> str:
    """What ``device=auto`` means there: ``cuda`` where any node of the cluster has a GPU.

    Raises
    ------
    ClusterError
        The cluster cannot be reached.
    """
    return "cuda" if any(node.gpus for node in joined(settings).ready().nodes()) else "cpu"


def emergency_stop() -> None:
    """Kill every process this driver has started, now, and wait for nothing.

    For a second Ctrl-C, right before ``os._exit``. On a cluster that was joined, Ray ends our
    workers when it misses the driver, and they take their measured processes along.
    """
    import psutil

    # Twice: what was forked between the look and the blow shows the second time.
    for _ in range(2):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                # The one that removes the session's files, once we are gone.
                if aftermath.__file__ not in process.cmdline():
                    process.kill()


def translate(error: BaseException) -> tuple[Outcome, str]:
    """The outcome and the one-line reason that an error of Ray's stands for."""
    from ray import exceptions

    # The first that matches counts: subclasses before their bases.
    table: tuple[tuple[type[BaseException], Outcome, str], ...] = (
        (exceptions.TaskCancelledError, Outcome.CANCELLED, "cancelled"),
        (exceptions.OutOfMemoryError, Outcome.OOM_HOST, "the host ran out of memory"),
        (exceptions.NodeDiedError, Outcome.LOST, "its node died"),
        (exceptions.LocalRayletDiedError, Outcome.LOST, "its node died"),
        (exceptions.WorkerCrashedError, Outcome.LOST, "its supervisor was killed"),
        (exceptions.ObjectLostError, Outcome.LOST, "its node died before the report arrived"),
        (exceptions.RuntimeEnvSetupError, Outcome.ERROR, "the node could not set up our code"),
        (exceptions.TaskUnschedulableError, Outcome.LOST, "no node could hold it"),
        (exceptions.RayTaskError, Outcome.ERROR, "its supervisor failed"),
        (exceptions.RayError, Outcome.LOST, "Ray failed"),
    )
    for kind, outcome, reason in table:
        if isinstance(error, kind):
            if outcome in (Outcome.ERROR, Outcome.OOM_HOST) or kind is exceptions.RayError:
                reason = f"{reason}: {_last_line(error)}"
            return outcome, reason
    return Outcome.ERROR, f"its report could not be read: {_last_line(error)}"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _node(entry: dict[str, Any]) -> Node:
    resources = entry["Resources"]
    kind = entry.get("Labels", {}).get(ACCELERATOR_LABEL)
    memory = resources.get("memory")
    return Node(
        node_id=entry["NodeID"],
        host=entry.get("NodeManagerHostname") or entry["NodeManagerAddress"],
        cpus=int(resources.get("CPU", 0)),
        gpus=int(resources.get("GPU", 0)),
        memory_bytes=None if memory is None else int(memory),
        accelerators=frozenset(filter(None, [kind])),
    )
