"""On which kind of node each trial is to run: one kind for all trials that are compared.

A pure function of the groups, of what nodes answered and of what was recorded. A baseline and its
rival on two kinds of node would have no ratio.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from orchestrator.attempt import Outcome, Resources, Trial
from orchestrator.conditions import Conditions, same
from orchestrator.schedule.placement import Node, slots

if TYPE_CHECKING:
    from orchestrator.record.summaries import AttemptSummary


@dataclass(frozen=True)
class Kind:
    """Nodes on which every trial of a plan has the same conditions.

    Attributes
    ----------
    nodes : tuple of Node
    classes : mapping of config hash to Conditions
        What a trial's attempts there are true of, by kind of GPU; without trials that do not fit.
    """

    nodes: tuple[Node, ...]
    classes: Mapping[str, Sequence[Conditions]]


def preferred(
    groups: Iterable[Sequence[Trial]],
    kinds: Sequence[Kind],
    recorded: Mapping[str, Sequence[AttemptSummary]],
) -> dict[str, tuple[Kind, ...]]:
    """The kinds that can hold each trial, by config hash; the first is where it is to run.

    Parameters
    ----------
    groups : iterable of sequences of Trial
        Trials that are compared with each other.
    kinds : sequence of Kind
    recorded : mapping of config hash to attempts

    Returns
    -------
    dict of str to tuple of Kind
        Of a group the order is the same for all: the kind that holds most of its trials first, then
        the one with most of its measurements, then with most of all, then with most slots.
    """
    groups = list(groups)
    measured = {
        (trial.hash, at): _measured(recorded[trial.hash], kind.classes.get(trial.hash, ()))
        for group in groups
        for trial in group
        if trial.hash in recorded
        for at, kind in enumerate(kinds)
    }

    def measured_at(at: int, trials: Iterable[Trial]) -> int:
        return sum(measured.get((trial.hash, at), 0) for trial in trials)

    of_all = [measured_at(at, (t for group in groups for t in group)) for at in range(len(kinds))]

    @cache
    def room(at: int, demand: Resources) -> int:
        return slots(kinds[at].nodes, demand)

    found = {}
    for group in groups:

        def worth(at: int, group: Sequence[Trial] = group) -> tuple[int, ...]:
            held = [trial for trial in group if trial.hash in kinds[at].classes]
            slots_there = sum(room(at, trial.resources) for trial in held)
            return len(held), measured_at(at, held), of_all[at], slots_there

        order = [kinds[at] for at in sorted(range(len(kinds)), key=worth, reverse=True)]
        for trial in group:
            found[trial.hash] = tuple(kind for kind in order if trial.hash in kind.classes)
    return found


def places_of(config_hash: str, kinds: Iterable[Kind]) -> tuple[frozenset[str], ...]:
    """Node ids that make no difference to a trial, by place, in the order of its ``kinds``.

    Empty where all are one place: the trial may run anywhere, also on a node that joins later.
    """
    places: list[tuple[Sequence[Conditions], set[str]]] = []
    for kind in kinds:
        classes, ids = kind.classes[config_hash], {node.node_id for node in kind.nodes}
        known = next((there for told, there in places if told == classes), None)
        if known is None:
            places.append((classes, ids))
        else:
            known |= ids
    return tuple(frozenset(ids) for _, ids in places) if len(places) > 1 else ()


def _measured(attempts: Iterable[AttemptSummary], classes: Sequence[Conditions]) -> int:
    ids = [conditions.ids for conditions in classes]
    return sum(
        attempt.outcome == Outcome.OK and any(same(attempt.conditions, one) for one in ids)
        for attempt in attempts
    )
