"""Which recorded attempts of a plan count as done for a run of it now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.schedule.todo import Reuse

if TYPE_CHECKING:
    from orchestrator.conditions import Conditions
    from orchestrator.plan.plan import Plan
    from orchestrator.record import AttemptSummary, Store


def reuse_of(
    store: Store, plan: Plan, recorded: Mapping[str, Sequence[AttemptSummary]]
) -> Reuse | None:
    """What the machine or cluster of ``plan`` could meet; None where the hash alone counts."""
    from orchestrator.errors import StoreError
    from orchestrator.schedule.possible import possible

    if plan.settings.reuse == "hash":
        return None
    known: dict[tuple[str, ...], Conditions | None] = {}

    def conditions_of(attempt: AttemptSummary) -> Conditions | None:
        # One report a class is read, not one a trial.
        key = tuple(attempt.conditions.values())
        if key and key not in known:
            try:
                known[key] = store.load(attempt.run_id).conditions
            except StoreError:
                known[key] = None
        return known.get(key)

    cluster = plan.settings.cluster
    # This machine is asked of all, for what other drivers record meanwhile; a cluster, which takes
    # seconds to join, of what has attempts.
    asked = [t for t in plan.trials if cluster.kind == "local" or t.hash in recorded]
    return Reuse(possible(cluster, asked), conditions_of)
