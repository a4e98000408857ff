"""One execution of a trial on one slot: what is asked of it, where it runs, how it ended.

These are the typed values that travel between the rooms: ``schedule`` builds an
:class:`AttemptSpec`, ``isolate`` turns it into an :class:`AttemptReport`, ``record`` stores it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from orchestrator.conditions import Conditions
from orchestrator.measure.metric import (
    Engaged,
    Metric,
    MetricSpec,
    Phase,
    metric_from_json,
    metric_to_json,
)

REPORT_VERSION = 1

# Phases that make something for every attempt to come: no part of the trial that met them first.
MADE_ONCE = frozenset({"convert", "reference", "compiler"})


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
        Cores; None for every core of a node that nobody shares.
    memory_bytes : int or None
        Host memory set aside for it, and the limit it is held to.
    accelerator : str or None
        Kind of GPU, as Ray names it: ``H100``.
    """

    gpus: int = 0
    cpus: int | None = None
    memory_bytes: int | None = None
    accelerator: str | None = None


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
class AttemptSpec:
    """Everything a supervisor needs to run one attempt; plain data, travels through Ray.

    Attributes
    ----------
    attempt_id, config_hash, sweep : str
        Its own name, its trial's hash, the sweep it is made for.
    identity : dict
        The trial's full configuration (the hashed tree).
    number : int
        Which attempt of its trial it is, from 1.
    timeout_s, start_timeout_s : float
        After which it is ended, from its start; and how long the start itself may take.
    memory_limit_bytes : int or None
        Host memory of its whole process tree; None for no limit.
    start : str
        ``fork`` from a warm server, or ``spawn``.
    telemetry, verdict : dict
        Plain forms of the configuration groups of those names.
    """

    attempt_id: str
    config_hash: str
    identity: dict[str, Any]
    sweep: str = "adhoc"
    number: int = 1
    timeout_s: float = 1800.0
    start_timeout_s: float = 120.0
    memory_limit_bytes: int | None = None
    start: str = "fork"
    telemetry: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)


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
        As of the :class:`AttemptSpec` it answers.
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
        from dataclasses import asdict

        data = {
            key: getattr(self, key)
            for key in (
                "attempt_id",
                "config_hash",
                "reason",
                "traceback",
                "number",
                "sweep",
                "started_at",
                "ended_at",
                "duration_s",
                "facts",
                "provenance",
            )
        }
        data["version"] = REPORT_VERSION
        data["outcome"] = self.outcome.value
        data["phases"] = [asdict(p) for p in self.phases]
        data["metrics"] = {k: metric_to_json(m) for k, m in self.metrics.items()}
        data["telemetry"] = {k: metric_to_json(m) for k, m in self.telemetry.items()}
        data["specs"] = [asdict(spec) for spec in self.specs.values()]
        data["engaged"] = [asdict(e) for e in self.engaged]
        data["verdict"] = asdict(self.verdict)
        data["conditions"] = None if self.conditions is None else self.conditions.to_json()
        data["slot"] = None if self.slot is None else asdict(self.slot)
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AttemptReport:
        """Inverse of :meth:`to_json`.

        Raises
        ------
        ValueError
            A report of another version.
        """
        if data.get("version") != REPORT_VERSION:
            raise ValueError(f"attempt report of version {data.get('version')!r}")
        slot = data["slot"]
        if slot is not None:
            slot = Slot(
                **{**slot, "cpus": tuple(slot["cpus"]), "gpu_uuids": tuple(slot["gpu_uuids"])}
            )
        verdict = data["verdict"]
        return cls(
            attempt_id=data["attempt_id"],
            config_hash=data["config_hash"],
            outcome=Outcome(data["outcome"]),
            reason=data["reason"],
            traceback=data["traceback"],
            number=data["number"],
            sweep=data["sweep"],
            started_at=data["started_at"],
            ended_at=data["ended_at"],
            duration_s=data["duration_s"],
            phases=[Phase(**p) for p in data["phases"]],
            metrics={k: metric_from_json(m) for k, m in data["metrics"].items()},
            telemetry={k: metric_from_json(m) for k, m in data["telemetry"].items()},
            # A report from before metrics were declared has none.
            specs={spec["name"]: MetricSpec(**spec) for spec in data.get("specs", ())},
            engaged=[Engaged(**e) for e in data["engaged"]],
            facts=data["facts"],
            verdict=Verdict(verdict["state"], tuple(RuleResult(**r) for r in verdict["rules"])),
            # A report from before conditions were recorded has none.
            conditions=Conditions.from_json(data.get("conditions")),
            slot=slot,
            provenance=data["provenance"],
        )
