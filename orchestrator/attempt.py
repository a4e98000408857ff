"""One execution of a trial on one slot: what is asked of it, where it runs, how it ended.

An attempt has three lives: ``schedule`` makes a :class:`PlannedAttempt` of a :class:`Trial` and
follows it as a :class:`RunningAttempt`, ``isolate`` turns it into an :class:`AttemptReport`,
``record`` stores that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from orchestrator.conditions import Conditions
from orchestrator.measure.metric import Engaged, Metric, MetricSpec, Phase
from orchestrator.measure.plain_json import from_json, to_json
from orchestrator.measure.wording import counted, gib

AxisValue = str | int | float | bool | None

REPORT_VERSION = 1

# Phases that make something for every attempt to come: no part of the trial that met them first.
MADE_ONCE = frozenset({"environment", "convert", "reference", "compiler"})


class Outcome(str, Enum):
    """How an attempt ended."""

    OK = "ok"
    INVALID = "invalid"
    OOM_DEVICE = "oom_device"
    OOM_HOST = "oom_host"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    ERROR = "error"
    INFEASIBLE = "infeasible"
    LOST = "lost"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Resources:
    """What a trial asks of the cluster.

    Attributes
    ----------
    gpus : int
        Whole GPUs.
    cpus : int or None
        Cores; None for every core of a node that nobody shares, until the driver knows the nodes
        and has resolved it.
    memory_bytes : int or None
        Host memory set aside for it, and the limit it is held to.
    accelerator : str or None
        Kind of GPU, as Ray names it: ``H100``.
    """

    gpus: int = 0
    cpus: int | None = None
    memory_bytes: int | None = None
    accelerator: str | None = None

    def __str__(self) -> str:
        parts = [counted(self.gpus, self.accelerator or "GPU")] if self.gpus else []
        parts.append(counted(self.cpus or 1, "CPU core"))
        if self.memory_bytes:
            parts.append(f"{gib(self.memory_bytes)} memory")
        return ", ".join(parts)


@dataclass(frozen=True)
class Trial:
    """One fully resolved configuration of a plan.

    Attributes
    ----------
    hash : str
        Config hash, 64 hex digits.
    identity : dict
        The tree that is hashed; not to be changed.
    axes : dict of str to value
        Where on each axis of the sweep it lies; typed as the configuration has it.
    resources : Resources
        What an attempt of it asks of the cluster.
    timeout_s : float
        After which an attempt is ended, from its start.
    infeasible : str or None
        Why it cannot be done, known before anything is loaded.
    commit : str or None
        What the revision of its hub model is now; None where the driver could not find out.
    """

    hash: str
    identity: dict[str, Any]
    axes: dict[str, AxisValue] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    timeout_s: float = 1800.0
    infeasible: str | None = None
    commit: str | None = None

    @property
    def measured(self) -> dict[str, Any]:
        """The identity as it is measured: a hub model with its commit."""
        if self.commit is None:
            return self.identity
        return {**self.identity, "model": {**self.identity["model"], "commit": self.commit}}


@dataclass(frozen=True)
class Slot:
    """What Ray gave an attempt.

    Attributes
    ----------
    node_id, host : str
        Ray's name of the node, and its host name.
    cpus : tuple of int
        Numbers of the cores it owns, disjoint from other slots'.
    gpu_uuids : tuple of str
        Empty where NVML does not tell them.
    cuda_visible_devices : str
        Ray's own names of the attempt's GPUs.
    memory_bytes : int or None
        Host memory it may use; None where nothing was set aside.
    """

    node_id: str
    host: str
    cpus: tuple[int, ...]
    gpu_uuids: tuple[str, ...] = ()
    cuda_visible_devices: str = ""
    memory_bytes: int | None = None

    @property
    def gpus(self) -> tuple[str, ...]:
        """The attempt's GPUs: by UUID, or as Ray names them; empty where it owns none."""
        named = (part.strip() for part in self.cuda_visible_devices.split(","))
        return self.gpu_uuids or tuple(filter(None, named))


@dataclass(frozen=True)
class PlannedAttempt:
    """An attempt to be made: all that the driver, the cluster and a supervisor need to know of it.

    Plain data, travels through Ray.

    Attributes
    ----------
    trial : Trial
        What is measured. Its host memory (``resources.memory_bytes``) limits the whole process
        tree; the driver has resolved its cores.
    number : int
        Which attempt of its trial it is, from 1.
    attempt_id : str
        Its own name; it has one once it is submitted.
    sweep : str
        What it is made for.
    start : str
        ``fork`` from a warm server, or ``spawn``.
    start_timeout_s : float
        How long the start itself may take.
    telemetry, verdict : dict
        Plain forms of the configuration groups of those names.
    tries : tuple of Outcome
        How earlier attempts at this same repeat ended.
    expected_s : float or None
        How long it may take: the median of the trial's measurements so far.
    avoid : frozenset of str
        Node ids that lost it before.
    places : tuple of frozensets of str
        Node ids by kind of node, the wanted kind first: it runs on the first of which a node is
        left. Empty where every node that can hold it will do.
    not_before : float
        On the cluster's clock (s).
    """

    trial: Trial
    number: int = 1
    attempt_id: str = ""
    sweep: str = "adhoc"
    start: str = "fork"
    start_timeout_s: float = 120.0
    telemetry: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    tries: tuple[Outcome, ...] = ()
    expected_s: float | None = None
    avoid: frozenset[str] = frozenset()
    places: tuple[frozenset[str], ...] = ()
    not_before: float = 0.0

    def report(self, outcome: Outcome, reason: str | None = None, **found: Any) -> AttemptReport:
        """Its report, with what was ``found``: further fields of :class:`AttemptReport`."""
        return AttemptReport(
            self.attempt_id,
            self.trial.hash,
            outcome,
            reason,
            number=self.number,
            sweep=self.sweep,
            **found,
        )


@dataclass
class RunningAttempt:
    """An attempt that was submitted and has not ended; times are on the cluster's clock (s).

    Attributes
    ----------
    planned : PlannedAttempt
        What is being made.
    submitted_at, started_at : float, float or None
        When it was given to the cluster, and when it got its slot.
    slot : Slot or None
        Where it runs; None while it waits.
    overdue_at : float or None
        When its supervisor has been silent for too long.
    cancelled : bool
        It was asked to end.
    forced_at : float or None
        When it was ended without asking.
    """

    planned: PlannedAttempt
    submitted_at: float
    started_at: float | None = None
    slot: Slot | None = None
    overdue_at: float | None = None
    cancelled: bool = False
    forced_at: float | None = None


@dataclass
class Observations:
    """What was seen of an attempt from outside.

    Attributes
    ----------
    aggregates : dict of str to Metric
        Figures of whole phases, by name.
    artifacts : dict of str to bytes
        Files, by name.
    facts : dict
        Everything else, for provenance.
    """

    aggregates: dict[str, Metric] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleResult:
    """One verdict rule applied.

    Attributes
    ----------
    rule : str
        Its name in ``conf/verdict``.
    state : str
        ``pass``, or as the rule says ``flagged`` or ``invalid``; ``unknown`` where it could not be
        checked.
    value, limit : float, str or None
        What was seen (None where nothing was), and the limit.
    reason : str or None
        One line, where it did not pass.
    """

    rule: str
    state: str  # pass | flagged | invalid | unknown
    value: float | str | None
    limit: float | str | None
    reason: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether telemetry lets a measurement be believed.

    Attributes
    ----------
    state : str
        ``valid``, ``flagged``, ``invalid`` or ``unverified``.
    rules : tuple of RuleResult
        Every rule that applies.
    """

    state: str
    rules: tuple[RuleResult, ...] = ()


@dataclass
class AttemptReport:
    """What an attempt left behind, whole or in part; JSON-able but for ``artifacts``.

    Attributes
    ----------
    attempt_id, config_hash, sweep, number : str, str, str, int
        As of the :class:`PlannedAttempt` it answers.
    outcome : Outcome
        How it ended.
    reason : str or None
        One line saying why the outcome is not ``ok``.
    traceback : str or None
        Of the measured process, where an exception ended it.
    phases : list of Phase
        In the order they began.
    engaged : list of Engaged
        Proofs that what was asked for happened.
    facts : dict
        What was found out on the way (hardware fingerprint, model's class), by name.
    verdict : Verdict
        Whether the measurement may be believed.
    conditions : Conditions or None
        What its numbers are true of; None where it never got a slot.
    slot : Slot or None
        Where it ran; None where it never got so far.
    provenance : dict
        What it ran on and with.
    metrics : dict of str to Metric
        What the task measured, by name.
    telemetry : dict of str to Metric
        Aggregates named ``<phase>.<metric>`` (``decode.power_w``, ``attempt.rss_bytes``).
    specs : dict of str to MetricSpec
        What these metrics are, by name, as far as it was declared (``measure.vocabulary.spec_for``
        knows the rest).
    artifacts : dict of str to bytes
        File name (relative, no ``..``) to content: ``log.txt``, ``samples.parquet`` ...
    started_at, ended_at : float
        Unix time, for people.
    duration_s : float
        By the monotonic clock.
    """

    attempt_id: str
    config_hash: str
    outcome: Outcome
    reason: str | None = None
    traceback: str | None = None
    number: int = 1
    sweep: str = "adhoc"
    started_at: float = 0.0
    ended_at: float = 0.0
    duration_s: float = 0.0
    phases: list[Phase] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    telemetry: dict[str, Metric] = field(default_factory=dict)
    specs: dict[str, MetricSpec] = field(default_factory=dict)
    engaged: list[Engaged] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=lambda: Verdict("unverified"))
    conditions: Conditions | None = None
    slot: Slot | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)

    @property
    def made_once_s(self) -> float:
        """Seconds in which it made something that later attempts find: no part of its own time."""
        total_ns, until_ns = 0, 0
        for phase in sorted(self.phases, key=lambda phase: phase.begin_ns):
            # One may lie inside another: a reference in a format that is converted for it.
            if phase.name in MADE_ONCE and (end_ns := phase.end_ns or 0) > until_ns:
                total_ns += end_ns - max(phase.begin_ns, until_ns)
                until_ns = end_ns
        return total_ns / 1e9

    def to_json(self) -> dict[str, Any]:
        """Everything but the artifacts' content, as plain JSON."""
        data: dict[str, Any] = to_json(replace(self, artifacts={}))
        del data["artifacts"]
        return {**data, "version": REPORT_VERSION, "specs": list(data["specs"].values())}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AttemptReport:
        """Inverse of :meth:`to_json`.

        Raises
        ------
        ValueError
            A report of another version.
        """
        data = dict(data)
        if (version := data.pop("version", None)) != REPORT_VERSION:
            raise ValueError(f"attempt report of version {version!r}")
        # A report from before metrics were declared has none.
        data["specs"] = {spec["name"]: spec for spec in data.get("specs", ())}
        return from_json(cls, data)
