"""What runs in a worker: takes the slot, runs the attempt in a process of its own, reports.

::

    granted ── own cores and GPUs ── started ── isolation ── judge ── report
                        (locks of the host)        └ telemetry watches

One worker process supervises many attempts one after another and keeps its fork server warm between
them. It imports neither torch nor a task's libraries.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import (
    AttemptReport,
    Outcome,
    PlannedAttempt,
    RuleResult,
    Slot,
    Verdict,
)
from orchestrator.conditions import difference
from orchestrator.isolate.variables import attempt_environment, server_environment
from orchestrator.schedule.events import (
    ClusterEvent,
    Ended,
    PhaseBegan,
    Started,
    Vanished,
    Waiting,
)
from orchestrator.schedule.supervise.cores import (
    CORES_VARIABLE,
    CoreSplit,
    allowed_cores,
    from_text,
    pin_process,
    split,
    supervisor_cores,
)
from orchestrator.schedule.supervise.gpu_memory import GpuMemoryGate
from orchestrator.schedule.supervise.locks import Request, local_directory
from orchestrator.schedule.surroundings import Surroundings

if TYPE_CHECKING:
    from orchestrator.conditions import Conditions
    from orchestrator.isolate.isolation import Isolation
    from orchestrator.telemetry.device import Device

# A phase is shown to a person: more often than this is only load on a measured machine.
PHASE_PERIOD_S = 1.0
# Waiting for cores of another sweep: look this often, say so after a while, give up in the end.
POLL_S = 0.05
SILENCE_S = 2.0
PATIENCE_EXTRA_S = 60.0


@dataclass(frozen=True)
class Grant:
    """What the cluster gave to this attempt on this node."""

    node_id: str
    node_cpus: int
    gpu_ids: tuple[str, ...] = ()


class Cancellation:
    """Turns a cancel (an interrupt of the main thread) into a flag and a call.

    An exception in the middle of the supervision would lose what the attempt has measured so far.
    """

    def __init__(self) -> None:
        self.asked = False
        self._isolation: Isolation | None = None

    def __enter__(self) -> Cancellation:
        self._previous = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def passes_to(self, isolation: Isolation) -> None:
        """From now on a cancel ends the attempt that ``isolation`` runs."""
        self._isolation = isolation
        if self.asked:
            isolation.cancel()

    def _interrupted(self, *_: object) -> None:
        self.asked = True
        if self._isolation is not None:
            self._isolation.cancel()


def attempt_events(
    attempt: PlannedAttempt, grant: Grant, cancellation: Cancellation
) -> Iterator[ClusterEvent]:
    """Everything about one attempt, whoever placed it."""
    whole = core_split(grant.node_cpus)
    gpu_uuids, visible = _gpus(grant.gpu_ids)
    locks = local_directory() / "locks"
    # The UUID of a MIG slice may have slashes.
    names = [uuid.replace("/", "_") for uuid in gpu_uuids]
    gpus = Request(locks, names, len(names), queue=False)
    # A container's quota may leave fewer cores than Ray was told of.
    wanted = attempt.trial.resources
    count = min(wanted.cpus or 1, len(whole.measured))
    cores = Request(locks, [f"core-{core}" for core in whole.measured], count)
    try:
        # Always GPUs first: two that need both never wait for each other.
        for request in (gpus, cores):
            if not (yield from _await(request, attempt, cancellation)):
                return
        slot = Slot(
            node_id=grant.node_id,
            host=socket.gethostname(),
            cpus=tuple(sorted(int(name.removeprefix("core-")) for name in cores.held)),
            gpu_uuids=gpu_uuids,
            cuda_visible_devices=visible,
            memory_bytes=wanted.memory_bytes,
        )
        pin_process(supervisor_cores(whole, slot.cpus) or whole.measured)
        # Before anything runs, so that failures have them too.
        surroundings = Surroundings(_devices() if slot.gpus else ())
        conditions = surroundings.of(attempt.trial.measured, slot)
        memory = GpuMemoryGate(attempt, slot)
        yield from memory.wait(lambda: cancellation.asked)
        if memory.held and cancellation.asked:
            return
        if memory.refuses:
            report = _with_surroundings(memory.report(), attempt, slot, conditions)
        else:
            yield Started(attempt.attempt_id, slot)
            report = yield from _run(attempt, slot, conditions, cancellation)
            _refuse_changed(report, surroundings.of(attempt.trial.measured, slot))
    finally:
        cores.release()
        gpus.release()
    # Only now: the driver may count on the slot's being free the moment it has the report.
    yield Ended(attempt.attempt_id, report)


def _await(
    request: Request, attempt: PlannedAttempt, cancellation: Cancellation
) -> Generator[ClusterEvent, None, bool]:
    """Wait until ``request`` is granted; False where the attempt ended instead."""
    began = time.monotonic()
    # Whoever holds it is measuring, and ends at the latest with a timeout like ours.
    patience_s = attempt.trial.timeout_s + attempt.start_timeout_s + PATIENCE_EXTRA_S
    said = False
    while not request.granted():
        waited_s = time.monotonic() - began
        if cancellation.asked:
            return False
        if waited_s > patience_s:
            reason = f"another sweep held the cores or GPUs of {socket.gethostname()} all the time"
            yield Vanished(attempt.attempt_id, Outcome.LOST, reason)
            return False
        if waited_s > SILENCE_S and not said:
            said = True
            text = f"waiting for cores or GPUs of {socket.gethostname()}: another sweep has them"
            yield Waiting(attempt.attempt_id, text)
        time.sleep(POLL_S)
    return True


def _with_surroundings(
    report: AttemptReport, attempt: PlannedAttempt, slot: Slot, conditions: Conditions
) -> AttemptReport:
    """``report`` with what it ran on, also where telemetry has not said it (off, or failed)."""
    from orchestrator.telemetry.fingerprint import hardware_of

    report.conditions = conditions
    report.provenance = {**_provenance(attempt, slot), **report.provenance}
    if "hardware_fingerprint" not in report.facts:
        report.facts |= hardware_of(slot, _devices() if slot.gpus else ())
    return report


def _provenance(attempt: PlannedAttempt, slot: Slot) -> dict[str, Any]:
    """Of this node; cores and variables are those that the measured process was given."""
    from orchestrator.record.provenance import node_provenance, relevant_variables

    facts = node_provenance()
    facts["cpu"]["cores_usable"] = len(slot.cpus)
    device = attempt.trial.identity.get("device") or {}
    threads = device.get("threads") or len(slot.cpus)
    variables = {
        **server_environment(os.environ, {}, hub=False),
        **attempt_environment(slot, threads, attempt.attempt_id, Path()),
    }
    return {**facts, "environment": relevant_variables(variables)}


def _run(
    attempt: PlannedAttempt, slot: Slot, conditions: Conditions, cancellation: Cancellation
) -> Generator[ClusterEvent, None, AttemptReport]:
    from orchestrator.isolate.ledger import Progress

    isolation = _warm_isolation()
    items = isolation.run(attempt, slot, _telemetry(attempt))
    cancellation.passes_to(isolation)
    shown_at = -PHASE_PERIOD_S
    report: AttemptReport | None = None
    for item in items:
        if not isinstance(item, Progress):
            report = item
        elif item.kind == "phase" and time.monotonic() - shown_at >= PHASE_PERIOD_S:
            shown_at = time.monotonic()
            yield PhaseBegan(attempt.attempt_id, item.name)
    assert report is not None, "an isolation always reports"
    _with_surroundings(report, attempt, slot, conditions)
    return judged(report, attempt.verdict)


def _refuse_changed(report: AttemptReport, now: Conditions) -> None:
    """Nobody knows which of two contents was measured, of a checkpoint that is still written to."""
    before = report.conditions
    if report.outcome is not Outcome.OK or before is None or before.content == now.content:
        return
    changed = difference(replace(now, content=before.content), now)
    report.outcome = Outcome.ERROR
    report.reason = f"files changed while they were measured ({changed}). Measure a copy of them"


def judged(report: AttemptReport, rules: Mapping[str, Any]) -> AttemptReport:
    """``report`` with its verdict; a measurement that telemetry refuses becomes ``invalid``."""
    from orchestrator.measure.vocabulary import protocol_specs
    from orchestrator.telemetry.derived import derived
    from orchestrator.telemetry.verdict import judge

    try:
        report.telemetry.update(derived(report))
        report.specs = {**protocol_specs((*report.metrics, *report.telemetry)), **report.specs}
        verdict = judge(report, rules)
    except Exception as error:  # a broken rule must not cost the measurement
        reason = f"{type(error).__name__}: {error}"
        verdict = Verdict("unverified", (RuleResult("judge", "unknown", None, None, reason),))
    report.verdict = verdict
    if report.outcome is Outcome.OK and verdict.state == "invalid":
        report.outcome = Outcome.INVALID
        report.reason = "; ".join(
            rule.reason or rule.rule for rule in verdict.rules if rule.state == "invalid"
        )
    return report


@cache
def core_split(node_cpus: int) -> CoreSplit:
    """This host's cores; looked up once, before this process is moved off most of them."""
    named = os.environ.get(CORES_VARIABLE)
    if named is None:
        return split(allowed_cores(), node_cpus)
    measured = from_text(named)
    return CoreSplit(measured, tuple(sorted(os.sched_getaffinity(0) - set(measured))))


@cache
def _warm_isolation() -> Isolation:
    from orchestrator.isolate.isolation import Isolation

    return Isolation()


def _telemetry(attempt: PlannedAttempt) -> Any:
    if not attempt.telemetry.get("enabled", True):
        return None
    from orchestrator.telemetry.watch import Telemetry

    return Telemetry(attempt.telemetry)


def _gpus(gpu_ids: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """UUIDs of the GPUs that Ray gave, and the ``CUDA_VISIBLE_DEVICES`` that means just those.

    With UUIDs in it CUDA's order of devices does not matter. Without NVML Ray's own ids have to do.
    """
    if not gpu_ids:
        return (), ""
    from orchestrator.telemetry.device import resolve_visible

    found = resolve_visible(",".join(gpu_ids), _devices())
    if len(found) != len(gpu_ids):
        return (), ",".join(gpu_ids)
    uuids = tuple(device.uuid for device in found)
    return uuids, ",".join(uuids)


@cache
def _devices() -> tuple[Device, ...]:
    from orchestrator.telemetry.device import devices

    return tuple(devices())
