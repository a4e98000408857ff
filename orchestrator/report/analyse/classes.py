"""Of a trial's attempts those whose conditions are the ones that are asked about now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.attempt import AttemptReport
from orchestrator.report.analyse.measured import believable, class_of


def current(
    reports: Mapping[str, Sequence[AttemptReport]], possible: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[AttemptReport]], int]:
    """Each trial's attempts without those measured under other conditions, and how many those are.

    Parameters
    ----------
    possible : mapping of config hash to sequence of str
        Identifiers of the conditions that could be met now, by trial. Where none of a trial's
        attempts has one of them, its newest class is kept.
    """
    kept, left = {}, 0
    for config, attempts in reports.items():
        classes = set(possible.get(config, ())) & set(map(class_of, attempts))
        if not classes:
            classes = {class_of(attempt) for attempt in believable(attempts)[:1]}
        # One that never got so far as to have conditions belongs to all.
        kept[config] = [a for a in attempts if a.conditions is None or class_of(a) in classes]
        if not kept[config]:
            kept[config] = list(attempts)
        left += len(attempts) - len(kept[config])
    return kept, left
