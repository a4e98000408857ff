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

from orchestrator.attempt import Outcome, PlannedAttempt, Resources
from orchestrator.errors import ClusterError
from orchestrator.schedule import actions, events
from orchestrator.schedule.claiming import ClaimingCluster
from orchestrator.schedule.cluster.ray.admission import admit
from orchestrator.schedule.cluster.ray.cluster import PendingCluster
from orchestrator.schedule.decide import decide, placed, submissions
from orchestrator.schedule.order import interleave
from orchestrator.schedule.placement import resolve, slots
from orchestrator.schedule.policy import Limits, retry_policy
from orchestrator.schedule.ports import ClaimsPort, ClusterPort, RecordingPort, ViewPort
from orchestrator.schedule.state import EndedAttempt, SweepState
from orchestrator.schedule.todo import Reuse, compute_todo

if TYPE_CHECKING:
    from orchestrator.plan.plan import Plan
    from orchestrator.record.summaries import AttemptSummary

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
    todo: Sequence[PlannedAttempt],
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
    todo : sequence of PlannedAttempt
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
                    ClaimingCluster(
                        port,
                        claims,
                        _missing(plan, runnable, reuse),
                        reuse.claim if reuse else lambda attempt: attempt.trial.hash,
                    )
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
    plan: Plan, attempts: Sequence[PlannedAttempt], reuse: Reuse | None
) -> Callable[[str, Sequence[AttemptSummary]], int]:
    """How many attempts of a trial are still to be made, by what is recorded of it by now."""
    trials = {attempt.trial.hash: attempt.trial for attempt in attempts}
    settings = replace(plan.settings, force=False)

    def missing(config_hash: str, recorded: Sequence[AttemptSummary]) -> int:
        todo = compute_todo([trials[config_hash]], {config_hash: recorded}, settings, reuse=reuse)
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
    plan: Plan, attempts: Sequence[PlannedAttempt], recording: RecordingPort, view: ViewPort
) -> list[EndedAttempt]:
    """Record what cannot be done without starting a process for it."""
    ended = []
    for attempt in attempts:
        trial = attempt.trial
        if trial.infeasible is None:
            continue
        now = time.time()
        made = replace(attempt, attempt_id=uuid.uuid4().hex, sweep=plan.sweep)
        report = made.report(Outcome.INFEASIBLE, trial.infeasible, started_at=now, ended_at=now)
        recording.finish(report, trial)
        view.finished(report, trial)
        ended.append(EndedAttempt(trial.hash, made.attempt_id, made.number, "infeasible", False))
    return ended


class Driver:
    """One sweep on one cluster: the loop, and what an action does to the world."""

    def __init__(
        self,
        plan: Plan,
        attempts: Sequence[PlannedAttempt],
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
        limits, start_timeout_s = limits or Limits(), settings.isolate.start_timeout_s
        limits = replace(limits, overdue_grace_s=limits.overdue_grace_s + start_timeout_s)
        verdict = settings.verdict
        policy = retry_policy(invalid_retries=verdict.retries, cooldown_s=verdict.cooldown_s)
        now = cluster.now()
        nodes = tuple(cluster.nodes())
        demands: dict[Resources, Resources] = {}
        for attempt in attempts:
            if attempt.trial.resources not in demands:
                demands[attempt.trial.resources] = resolve(attempt.trial.resources, nodes)
        number = max((slots(nodes, demand) for demand in set(demands.values())), default=1)
        common: dict[str, Any] = {
            "sweep": plan.sweep,
            "start": settings.isolate.start,
            "start_timeout_s": start_timeout_s,
            "telemetry": asdict(settings.telemetry),
            "verdict": asdict(settings.verdict),
        }
        planned = [
            replace(
                attempt,
                trial=replace(attempt.trial, resources=demands[attempt.trial.resources]),
                **common,
            )
            for attempt in interleave(attempts, seed, slots=number)
        ]
        driver_id = uuid.uuid4().hex[:12]
        epoch_s = time.time() - now
        self.state = SweepState(planned, policy, limits, driver_id, now=now, epoch_s=epoch_s)
        self._handle(events.NodesSeen(nodes))
        lanes = self.state.lanes.values()
        hosts = {lane.nodes[0].host: None for lane in lanes if lane.places and lane.nodes}
        if hosts:
            like = ", ".join(hosts)
            view.message(f"several kinds of node: what is compared runs on nodes like {like}")

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
                if stop.is_set():
                    # Before what ended by the same signal: that is not lost.
                    self._handle(events.StopRequested())
                for event in happened:
                    self._handle(event)
        except ClusterError as error:
            # A signal that stops us may go to all our processes, and end Ray first.
            self._handle(events.ClusterGone(error.what, stopped=stop.is_set()))
            if not stop.is_set():
                raise
        except BaseException:
            # Whatever went wrong here (a store that is full, a bug): no process may outlive it.
            for attempt_id in self.state.running:
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
        # Submit begins the life of an attempt and Finish ends it: look on the right side of commit.
        submitted_id = self.state.next_attempt_id
        running = self.state.running.get(getattr(action, "attempt_id", ""))
        self.state.commit(action)
        if isinstance(action, actions.Submit):
            self._submit(self.state.running[submitted_id].planned)
        elif isinstance(action, actions.Say):
            self._view.message(action.text)
        elif running is not None:
            self._perform(action, running.planned)

    def _submit(self, attempt: PlannedAttempt) -> None:
        self._recording.submit(attempt)
        self._cluster.submit(placed(self.state, attempt))
        self._view.submitted(attempt)

    def _perform(self, action: actions.Action, attempt: PlannedAttempt) -> None:
        match action:
            case actions.Begin(_, slot):
                self._recording.begin(attempt, slot)
                self._view.started(attempt, slot)
            case actions.ShowPhase(_, name):
                self._view.phase(attempt, name)
            case actions.Cancel(attempt_id, force):
                self._cluster.cancel(attempt_id, force=force)
            case actions.Finish(_, report):
                self._recording.finish(report, attempt.trial)
                self._view.finished(report, attempt.trial)
            case actions.Withdraw(attempt_id, made):
                self._recording.withdraw(attempt_id)
                self._view.withdrawn(attempt, made=made)
