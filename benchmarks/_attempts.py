"""One trial made of overrides, and an attempt of it through isolation."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.attempt import AttemptReport, Outcome, PlannedAttempt, Slot, Trial
from orchestrator.host.cpu import usable_cores
from orchestrator.isolate.isolation import Isolation
from orchestrator.plan.expand import build


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


def attempt(
    isolation: Isolation,
    identity: Mapping[str, Any],
    *,
    config_hash: str = "0" * 64,
    cores: Sequence[int] | None = None,
    watch: Any = None,
    start: str = "fork",
) -> AttemptReport:
    """The report of one attempt; ends the program where it is not ``ok``.

    Parameters
    ----------
    cores : sequence of int, optional
        Those it may use; by default all.
    """
    slot = Slot("node", "host", usable_cores() if cores is None else tuple(cores))
    trial = Trial(config_hash, dict(identity), timeout_s=3600.0)
    planned = PlannedAttempt(trial, attempt_id=uuid.uuid4().hex, start=start)
    *_, report = isolation.run(planned, slot, watch)
    if not isinstance(report, AttemptReport) or report.outcome is not Outcome.OK:
        raise SystemExit(f"the attempt ended badly: {getattr(report, 'reason', report)}")
    return report
