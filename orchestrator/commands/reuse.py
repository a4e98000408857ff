"""Which recorded attempts of a plan count as done for a run of it now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.errors import StoreError
from orchestrator.measure.grouping import grouped
from orchestrator.plan.comparison import Comparison
from orchestrator.schedule.kinds import preferred
from orchestrator.schedule.possible import possible
from orchestrator.schedule.todo import Reuse

if TYPE_CHECKING:
    from orchestrator.conditions import Conditions
    from orchestrator.plan.plan import Plan
    from orchestrator.record import AttemptSummary, Store


def reuse_of(store: Store, plan: Plan, recorded: Mapping[str, Sequence[AttemptSummary]]) -> Reuse:
    """What the machine or cluster of ``plan`` could meet, and which kind of node gets what.

    Raises
    ------
    ClusterError
        The cluster cannot be reached.
    """
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

    settings = plan.settings
    exact = settings.reuse == "exact"
    # One machine has nothing to choose from.
    asked = plan.trials if exact or settings.cluster.kind != "local" else ()
    groups = grouped(plan.trials, Comparison.of(plan).group_of).values()
    kinds = preferred(groups, possible(settings.cluster, asked), recorded)
    return Reuse(kinds, conditions_of, exact)
