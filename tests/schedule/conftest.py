"""What the schedule's tests share: noop trials, a recording and a view that only remember."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, PlannedAttempt, Resources, Slot, Trial
from orchestrator.plan.schema import ClusterConfig, Settings, TelemetryConfig
from orchestrator.schedule.driver import SweepResult, run_sweep

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Recorded:
    """A RecordingPort that keeps everything, with the intervals in which slots were held."""

    submitted: set[str] = field(default_factory=set)
    begun: list[PlannedAttempt] = field(default_factory=list)
    reports: list[AttemptReport] = field(default_factory=list)

    def submit(self, attempt: PlannedAttempt) -> None:
        self.submitted.add(attempt.attempt_id)

    def withdraw(self, attempt_id: str) -> None:
        self.submitted.remove(attempt_id)

    def begin(self, attempt: PlannedAttempt, slot: Slot) -> None:
        assert attempt.attempt_id in self.submitted
        self.begun.append(attempt)

    def finish(self, report: AttemptReport, trial: Trial) -> None:
        assert report.config_hash == trial.hash
        self.reports.append(report)

    @property
    def by_hash(self) -> dict[str, list[AttemptReport]]:
        grouped = defaultdict(list)
        for report in self.reports:
            grouped[report.config_hash].append(report)
        return grouped

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(report.outcome.value for report in self.reports)


@dataclass
class Seen:
    """A ViewPort that keeps what it was told; ``on_started`` lets a test act at that moment."""

    events: list[tuple[str, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    on_started: Callable[[PlannedAttempt, Slot], None] = lambda attempt, slot: None

    def submitted(self, attempt: PlannedAttempt) -> None:
        self.events.append(("submitted", attempt.attempt_id))

    def withdrawn(self, attempt: PlannedAttempt, *, made: bool) -> None:
        self.events.append(("withdrawn", attempt.attempt_id))

    def started(self, attempt: PlannedAttempt, slot: Slot) -> None:
        self.events.append(("started", attempt.attempt_id))
        self.on_started(attempt, slot)

    def phase(self, attempt: PlannedAttempt, name: str) -> None:
        self.events.append((f"phase {name}", attempt.attempt_id))

    def finished(self, report: AttemptReport, trial: Trial) -> None:
        self.events.append((f"finished {report.outcome.value}", report.attempt_id))

    def message(self, text: str) -> None:
        self.messages.append(text)


def make_trial(
    value: int, *, resources: Resources | None = None, infeasible: str | None = None, **task: Any
) -> Trial:
    """A noop trial; ``value`` tells it from the others."""
    return Trial(
        hash=hashlib.sha256(str(value).encode()).hexdigest(),
        identity={
            "schema": 1,
            "task": {"name": "noop", "value": value, "sleep_s": 0.0, **task},
            "model": {},
            "quant": {},
            "protocol": {},
            "device": {"kind": "cpu", "threads": None},
            "seed": 0,
        },
        axes={"task.value": value},
        resources=resources or Resources(cpus=1),
        timeout_s=60.0,
        infeasible=infeasible,
    )


def make_plan(**settings: Any) -> Any:
    """What a driver reads of a plan."""
    settings.setdefault("telemetry", TelemetryConfig(enabled=False))
    return SimpleNamespace(sweep="test", settings=Settings(**settings), trials=())


@dataclass
class Run:
    """A sweep that was run, with what was recorded and shown."""

    result: SweepResult
    recorded: Recorded
    seen: Seen


def sweep(
    trials: list[Trial],
    cluster: Any,
    *,
    repeats: int = 1,
    seed: int = 0,
    stop: threading.Event | None = None,
    seen: Seen | None = None,
    limits: Any = None,
    attempts: list[PlannedAttempt] | None = None,
    **settings: Any,
) -> Run:
    """Run every trial ``repeats`` times on ``cluster``, or these ``attempts``."""
    recorded, seen = Recorded(), seen or Seen()
    result = run_sweep(
        make_plan(**settings),
        attempts or [PlannedAttempt(t, number) for t in trials for number in range(1, repeats + 1)],
        recording=recorded,
        view=seen,
        seed=seed,
        stop=stop or threading.Event(),
        cluster=cluster,
        limits=limits,
    )
    return Run(result, recorded, seen)


@pytest.fixture
def kit() -> Any:
    """The helpers above, for test modules (which cannot import this file)."""
    return SimpleNamespace(
        Recorded=Recorded, Seen=Seen, trial=make_trial, plan=make_plan, sweep=sweep
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A person's checkout with a task (its values are 1000 more) and a group that is theirs."""
    made = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("orchestrator", "tasks", "conf"):
        shutil.copytree(ROOT / name, made / name, ignore=ignore, symlinks=True)
    noop = made / "tasks" / "noop.py"
    text = noop.read_text()
    changed = text.replace('options["value"])', 'options["value"] + 1000)')
    assert changed != text
    noop.write_text(changed)
    (made / "conf" / "protocol" / "mine.yaml").write_text("warmup: 3\n")
    return made


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One local Ray for all tests that need a real one; its core locks are its own."""
    from orchestrator.schedule.cluster.ray.cluster import PendingCluster

    with pytest.MonkeyPatch.context() as patch:
        directory: Path = tmp_path_factory.mktemp("local")
        directory.chmod(0o700)
        patch.setenv("ORCHESTRATOR_LOCAL_DIR", str(directory))
        with PendingCluster(ClusterConfig(cpus=2, gpus=0)) as pending:
            yield pending.ready()
