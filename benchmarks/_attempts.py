"""One trial made of overrides, and an attempt of it through isolation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.attempt import AttemptReport, Outcome, Trial
from orchestrator.isolate.isolation import Isolation
from orchestrator.plan.expand import build
from testing.trial import run_attempt


def trial_of(*overrides: str) -> Trial:
    """The one trial that ``overrides`` name, on a CPU."""
    (trial,) = build([*overrides, "device=cpu"], device_kind=lambda cluster: "cpu").trials
    return trial


def fixed_repetitions(count: int) -> tuple[str, ...]:
    """Overrides of a protocol that repeats so many times, whatever it measures."""
    return (
        f"protocol.min_repetitions={count}",
        f"protocol.max_repetitions={count}",
        "protocol.max_time_s=100000",
    )


def attempt(isolation: Isolation, identity: Mapping[str, Any], **how: Any) -> AttemptReport:
    """:func:`testing.trial.run_attempt`; ends the program where it is not ``ok``."""
    report = run_attempt(isolation, identity, timeout_s=3600.0, **how)
    if report.outcome is not Outcome.OK:
        raise SystemExit(f"the attempt ended badly: {report.reason}")
    return report
