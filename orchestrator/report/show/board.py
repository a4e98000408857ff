"""What is known about a running sweep: counts, who runs where, the last problems. Pure state.

The scheduler's events go in through :class:`~orchestrator.report.show.live.LiveView`; its thread
draws what is here. Costs are per event, never per trial of the sweep.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from orchestrator.attempt import AttemptReport, Outcome, Slot
from orchestrator.report.analyse.eta import remaining_s
from orchestrator.report.analyse.measured import samples_of, spec_of
from orchestrator.report.analyse.reasons import one_line, why
from orchestrator.report.show.units import duration, quantity

# Broken rules that tell of the machine and not of the measurement: while a sweep runs, a person can
# still do something about them.
MACHINE_RULES = frozenset(
    {
        "thermal_slowdown",
        "hardware_slowdown",
        "power_brake",
        "power_cap",
        "sm_clock",
        "device_lost",
        "foreign_process",
        "cgroup_throttling",
        "steal",
        "swap",
        "other_load",
    }
)
# A first estimate rests on what is known from before until this run has its own durations.
_OWN_ENOUGH = 3


@dataclass
class Running:
    """One attempt that holds a slot."""

    label: str
    host: str
    device: str
    since_s: float
    phase: str = "starting"


@dataclass(frozen=True)
class Problem:
    """One attempt that ended badly."""

    outcome: str
    label: str
    reason: str


@dataclass
class Condition:
    """One rule about the machine that attempts have broken: how many, and where it was last."""

    rule: str
    attempts: int
    where: str
    said: str


@dataclass
class Board:
    """Counts and current state of one sweep.

    Attributes
    ----------
    total : int
        Attempts of the whole sweep, cached ones included.
    cached : int
        Attempts that need not run.
    history_s : list of float
        Durations known from earlier runs; they make the first estimate.
    """

    sweep: str
    total: int
    cached: int = 0
    started_s: float = 0.0
    history_s: Sequence[float] = ()
    submitted: set[str] = field(default_factory=set)
    running: dict[str, Running] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    durations_s: list[float] = field(default_factory=list)
    problems: deque[Problem] = field(default_factory=lambda: deque(maxlen=50))
    conditions: dict[str, Condition] = field(default_factory=dict)
    most_running: int = 0

    @property
    def todo(self) -> int:
        """Attempts of this run; retries make it grow past what was planned."""
        return max(self.total - self.cached, len(self.submitted), self.finished)

    @property
    def finished(self) -> int:
        return sum(self.outcomes.values())

    @property
    def ok(self) -> int:
        return self.outcomes[Outcome.OK.value]

    @property
    def failed(self) -> int:
        return self.finished - self.ok

    @property
    def waiting(self) -> int:
        return max(self.todo - self.finished - len(self.running), 0)

    def submit(self, attempt_id: str) -> None:
        self.submitted.add(attempt_id)

    def withdraw(self, attempt_id: str, *, made: bool) -> None:
        self.submitted.discard(attempt_id)
        self.cached += made

    def start(self, attempt_id: str, label: str, slot: Slot, now_s: float) -> None:
        self.running[attempt_id] = Running(label, slot.host, device_of(slot), now_s)
        self.most_running = max(self.most_running, len(self.running))

    def enter(self, attempt_id: str, phase: str) -> None:
        if attempt_id in self.running:
            self.running[attempt_id].phase = phase

    def finish(self, report: AttemptReport, label: str, now_s: float) -> float:
        """Count an ending; returns how long the attempt held its slot, in seconds.

        Without what it made for every later attempt, such as a converted model.
        """
        running = self.running.pop(report.attempt_id, None)
        took_s = report.duration_s if running is None else now_s - running.since_s
        took_s = max(took_s - report.made_once_s, 0.0)
        self.outcomes[report.outcome.value] += 1
        if running is not None:
            self.durations_s.append(took_s)
        if report.outcome is not Outcome.OK:
            self.problems.append(Problem(report.outcome.value, label, why(report)))
        elif report.verdict.state == "flagged":
            self.flagged += 1
        self._note_conditions(report)
        return took_s

    def _note_conditions(self, report: AttemptReport) -> None:
        where = "" if report.slot is None else f"{report.slot.host} {device_of(report.slot)}"
        for rule in report.verdict.rules:
            if rule.rule in MACHINE_RULES and rule.state in ("flagged", "invalid"):
                before = self.conditions.get(rule.rule)
                said = one_line(rule.reason or f"{rule.value}, limit {rule.limit}")
                attempts = 1 + (before.attempts if before else 0)
                self.conditions[rule.rule] = Condition(rule.rule, attempts, where.strip(), said)

    def remaining_s(self, now_s: float) -> tuple[float, float] | None:
        """An 80 % interval of the time left, from this run's durations, at first earlier ones."""
        own = self.durations_s
        return remaining_s(
            own if len(own) >= _OWN_ENOUGH else [*own, *self.history_s],
            waiting=self.waiting,
            running_s=[now_s - r.since_s for r in self.running.values()],
            slots=max(self.most_running, 1),
        )


def device_of(slot: Slot) -> str:
    """What an attempt holds on its host: ``GPU 1a2b3c4d``, ``2 GPUs``, ``cpu 0-3``."""
    if len(slot.gpu_uuids) == 1:
        return f"GPU {slot.gpu_uuids[0].removeprefix('GPU-').removeprefix('MIG-')[:8]}"
    if slot.gpu_uuids:
        return f"{len(slot.gpu_uuids)} GPUs"
    return f"cpu {core_ranges(slot.cpus)}" if slot.cpus else ""


def core_ranges(cpus: Sequence[int]) -> str:
    """Core numbers as the kernel writes them: ``0-3,8``."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][1] + 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def plain_line(
    board: Board, report: AttemptReport, label: str, took_s: float, headline: Sequence[str]
) -> str:
    """One finished attempt: ``[3/8] ok  nf4 · 512→32  12.3 s  TPOT 61.2 ms``."""
    width = len(str(board.todo))
    parts = [label, duration(took_s)]
    if report.outcome is Outcome.OK:
        parts.append(_first_metric(report, headline))
        if report.verdict.state == "flagged":
            rules = [r.rule for r in report.verdict.rules if r.state == "flagged"]
            parts.append(f"(flagged: {', '.join(rules)})")
    else:
        said, before = why(report), list(board.problems)[-2:-1]
        # Many trials of a sweep may be known not to be feasible, all for one reason.
        told = report.outcome is Outcome.INFEASIBLE and said in (p.reason for p in before)
        parts.append("as above" if told else said)
    head = f"[{board.finished:>{width}}/{board.todo}] {report.outcome.value:<3}"
    return "  ".join([head, *(part for part in parts if part)])


def _first_metric(report: AttemptReport, headline: Sequence[str]) -> str:
    for name in headline:
        if found := samples_of([report], name):
            spec = spec_of([report], name)
            return f"{spec.title} {quantity(median(found[0]), spec.unit)}"
    return ""
