"""Runs a sweep: keeps a window of attempts submitted, records every ending, retries by policy.

The loop is four lines: wait for events, ``decide`` (pure), ``commit`` to the state, ``perform``
towards the cluster, the recording and the view. The same loop runs on Ray and in virtual time.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import AttemptReport, AttemptSpec, Outcome, Resources
from orchestrator.errors import ClusterError
from orchestrator.schedule import actions, events
from orchestrator.schedule.claiming import ClaimingCluster
from orchestrator.schedule.cluster.ray.admission import admit
from orchestrator.schedule.cluster.ray.cluster import PendingCluster
from orchestrator.schedule.decide import avoidable, decide, submissions
from orchestrator.schedule.flight import Flight, Ticket
from orchestrator.schedule.order import interleave
from orchestrator.schedule.placement import Demand, resolve, slots
from orchestrator.schedule.policy import Limits, retry_policy
from orchestrator.schedule.ports import ClaimsPort, ClusterPort, RecordingPort, ViewPort
from orchestrator.schedule.state import EndedAttempt, SweepState
from orchestrator.schedule.todo import Attempt, Reuse, compute_todo

if TYPE_CHECKING:
    from orchestrator.plan.plan import Plan
    from orchestrator.plan.schema import Settings
    from orchestrator.plan.trial import Trial
    from orchestrator.record.store import AttemptSummary

# Short enough that a stop is noticed at once, long enough to leave the measured cores alone.
WAIT_S = 0.25


@dataclass(frozen=True)
class SweepResult:
    """How a sweep went; what its attempts measured is in the store.

    Attributes
    ----------
    attempts : tuple of EndedAttempt
        Every attempt that was recorded, in the order they ended.
    interrupted : bool
        A stop was asked for.
    unmade : int
        Attempts that were to be made and were not (stopped, or no node was left).
    adopted : int
        Attempts that were left out because another driver has made them meanwhile.
    wall_s, busy_s : float
        Duration of the sweep, and slot time inside attempts.
    """

    attempts: tuple[EndedAttempt, ...] = ()
    interrupted: bool = False
    unmade: int = 0
    adopted: int = 0
    wall_s: float = 0.0
    busy_s: float = 0.0

    @property
    def outcomes(self) -> Counter[str]:
        """Outcome to number of attempts, retried ones included."""
        return Counter(attempt.outcome for attempt in self.attempts)

    @property
    def final(self) -> dict[str, str]:
        """Config hash to the outcome of its last attempt."""
        return {attempt.config_hash: attempt.outcome for attempt in self.attempts}


def run_sweep(
    plan: Plan,
    todo: Sequence[Attempt],
    *,
    recording: RecordingPort,
    view: ViewPort,
    seed: int,
    stop: threading.Event,
    cluster: ClusterPort | PendingCluster | None = None,
    limits: Limits | None = None,
    claims: ClaimsPort | None = None,
    reuse: Reuse | None = None,
) -> SweepResult:
    """Make every attempt of ``todo`` and record how it ended.

    Parameters
    ----------
    plan : Plan
        Its settings say where and under which rules; only ``todo`` is run.
    todo : sequence of Attempt
        From :func:`orchestrator.schedule.todo.compute_todo`.
    recording, view : RecordingPort, ViewPort
        Told of every start and ending.
    seed : int
        Of the interleaving.
    stop : threading.Event
        Set it to stop: running attempts end as ``cancelled`` within seconds.
    cluster : ClusterPort or PendingCluster, optional
        A cluster that is up or coming up, and stays up; None starts one by
        ``plan.settings.cluster`` and shuts it down at the end.
    claims : ClaimsPort, optional
        Where other drivers may be at the same trials: what they measure is left to them.
    reuse : Reuse, optional
        Which of their attempts count.

    Raises
    ------
    ClusterError
        Ray cannot be started or reached, or a trial asks for what no node has. Nothing ran then.
    Interrupted
        ``stop`` was set before the cluster was up.
    """
    began = time.monotonic()
    attempts = list(todo)
    runnable = [attempt for attempt in attempts if attempt.trial.infeasible is None]
    state: SweepState | None = None
    with contextlib.ExitStack() as stack:
        if runnable:
            port = _open(plan, cluster, stop, stack)
            if claims is not None:
                port = stack.enter_context(
                    ClaimingCluster(port, claims, _missing(plan, runnable, reuse))
                )
            driver = Driver(plan, runnable, port, recording, view, seed, limits)
            state = driver.state
        # After the driver has looked at all demands: what is refused as a whole records nothing.
        refused = _record_infeasible(plan, attempts, recording, view)
        if runnable:
            driver.run(stop)
    return _result(refused, state, stop.is_set(), time.monotonic() - began)


def _open(
    plan: Plan,
    cluster: ClusterPort | PendingCluster | None,
    stop: threading.Event,
    stack: contextlib.ExitStack,
) -> ClusterPort:
    if cluster is None:
        cluster = stack.enter_context(PendingCluster(plan.settings.cluster))
    if not isinstance(cluster, PendingCluster):
        return cluster
    joined = cluster.ready(stop=stop)
    if plan.settings.cluster.kind == "ray":
        admit(joined, plan.settings.tracking)
    return joined


def _missing(
    plan: Plan, attempts: Sequence[Attempt], reuse: Reuse | None
) -> Callable[[str, Sequence[AttemptSummary]], int]:
    """How many attempts of a trial are still to be made, by what is recorded of it by now."""
    settings = plan.settings
    trials = {attempt.trial.hash: attempt.trial for attempt in attempts}

    def missing(config_hash: str, recorded: Sequence[AttemptSummary]) -> int:
        todo = compute_todo(
            [trials[config_hash]],
            {config_hash: recorded},
            repeats=settings.repeats,
            retry_failed=settings.retry.failed,
            invalid_retries=settings.verdict.retries,
            reuse=reuse,
        )
        return len(todo.attempts)

    return missing


def _result(
    refused: list[EndedAttempt], state: SweepState | None, interrupted: bool, wall_s: float
) -> SweepResult:
    if state is None:
        return SweepResult(tuple(refused), interrupted, wall_s=wall_s)
    ended = (*refused, *state.ended)
    return SweepResult(ended, interrupted, state.unmade, state.adopted, wall_s, state.busy_s)


def _record_infeasible(
    plan: Plan, attempts: Sequence[Attempt], recording: RecordingPort, view: ViewPort
) -> list[EndedAttempt]:
    """Record what cannot be done without starting a process for it."""
    ended = []
    for attempt in attempts:
        trial = attempt.trial
        if trial.infeasible is None:
            continue
        now = time.time()
        report = AttemptReport(
            attempt_id=uuid.uuid4().hex,
            config_hash=trial.hash,
            outcome=Outcome.INFEASIBLE,
            reason=trial.infeasible,
            number=attempt.number,
            sweep=plan.sweep,
            started_at=now,
            ended_at=now,
        )
        recording.finish(report, trial)
        view.finished(report, trial)
        ended.append(
            EndedAttempt(trial.hash, report.attempt_id, attempt.number, "infeasible", False)
        )
    return ended


class Driver:
    """One sweep on one cluster: the loop, and what an action does to the world."""

    def __init__(
        self,
        plan: Plan,
        attempts: Sequence[Attempt],
        cluster: ClusterPort,
        recording: RecordingPort,
        view: ViewPort,
        seed: int,
        limits: Limits | None = None,
    ) -> None:
        self._cluster = cluster
        self._recording = recording
        self._view = view
        settings = plan.settings
        self._common = _common_spec(plan.sweep, settings)
        start_s = self._common["start_timeout_s"]
        limits = limits or Limits()
        limits = replace(limits, overdue_grace_s=limits.overdue_grace_s + start_s)
        verdict = settings.verdict
        policy = retry_policy(invalid_retries=verdict.retries, cooldown_s=verdict.cooldown_s)
        now = cluster.now()
        nodes = tuple(cluster.nodes())
        demands: dict[Resources, Demand] = {}
        for attempt in attempts:
            if attempt.trial.resources not in demands:
                demands[attempt.trial.resources] = resolve(attempt.trial.resources, nodes)
        number = max((slots(nodes, demand) for demand in set(demands.values())), default=1)
        tickets = [
            Ticket(attempt.trial, demands[attempt.trial.resources], attempt.number, attempt.tries)
            for attempt in interleave(attempts, seed, slots=number)
        ]
        self.state = SweepState(
            tickets,
            policy,
            limits,
            uuid.uuid4().hex[:12],
            sweep=plan.sweep,
            now=now,
            epoch_s=time.time() - now,
        )
        self._specs: dict[str, AttemptSpec] = {}
        self._handle(events.NodesSeen(nodes))

    def run(self, stop: threading.Event) -> None:
        """Work until nothing is left or ``stop`` was obeyed."""
        try:
            while True:
                if stop.is_set():
                    self._handle(events.StopRequested())
                self._turn()
                if self.state.done:
                    return
                happened = self._cluster.wait(WAIT_S)
                self.state.now = self._cluster.now()
                for event in happened:
                    self._handle(event)
        except ClusterError as error:
            self._handle(events.ClusterGone(error.what))
            raise
        except BaseException:
            # Whatever went wrong here (a store that is full, a bug): no process may outlive it.
            for attempt_id in self.state.flights:
                self._cluster.cancel(attempt_id, force=True)
            raise

    def _turn(self) -> None:
        self.state.now = self._cluster.now()
        review = self.state.now >= self.state.review_at and not self.state.stopping
        self._handle(events.Tick())
        if review:
            self._handle(events.NodesSeen(tuple(self._cluster.nodes())))
        for action in submissions(self.state):
            self._act(action)

    def _handle(self, event: events.Event) -> None:
        for action in decide(self.state, event):
            self._act(action)

    def _act(self, action: actions.Action) -> None:
        # Submit creates a flight and Finish ends it: look theirs up on the right side of commit.
        if isinstance(action, actions.Submit):
            attempt_id = self.state.next_attempt_id
            self.state.commit(action)
            self._submit(attempt_id, action.ticket)
            return
        flight = self.state.flights.get(getattr(action, "attempt_id", ""))
        self.state.commit(action)
        if isinstance(action, actions.Say):
            self._view.message(action.text)
        elif flight is not None:
            self._perform(action, flight)

    def _submit(self, attempt_id: str, ticket: Ticket) -> None:
        trial = ticket.trial
        spec = AttemptSpec(
            attempt_id=attempt_id,
            config_hash=trial.hash,
            identity=trial.identity,
            number=ticket.number,
            timeout_s=trial.timeout_s,
            memory_limit_bytes=ticket.demand.memory_bytes,
            **self._common,
        )
        self._specs[attempt_id] = spec
        self._recording.submit(spec, trial)
        self._cluster.submit(spec, ticket.demand, avoidable(self.state, ticket))
        self._view.submitted(spec, trial)

    def _perform(self, action: actions.Action, flight: Flight) -> None:
        trial: Trial = flight.ticket.trial
        spec = self._specs[flight.attempt_id]
        if isinstance(action, actions.Begin):
            self._recording.begin(spec, trial, action.slot)
            self._view.started(spec, trial, action.slot)
        elif isinstance(action, actions.ShowPhase):
            self._view.phase(spec, action.name)
        elif isinstance(action, actions.Cancel):
            self._cluster.cancel(flight.attempt_id, force=action.force)
        elif isinstance(action, actions.Finish):
            self._recording.finish(action.report, trial)
            self._view.finished(action.report, trial)
        elif isinstance(action, actions.PutOff | actions.Adopt):
            self._recording.withdraw(flight.attempt_id)
            self._view.withdrawn(spec, made=isinstance(action, actions.Adopt))
        if flight.attempt_id not in self.state.flights:
            del self._specs[flight.attempt_id]


def _common_spec(sweep: str, settings: Settings) -> dict[str, Any]:
    """The part of an attempt's specification that all attempts of a sweep share."""
    return {
        "sweep": sweep,
        "start": settings.isolate.start,
        "start_timeout_s": settings.isolate.start_timeout_s,
        "telemetry": asdict(settings.telemetry),
        "verdict": asdict(settings.verdict),
    }
