"""Which attempts of two trials may be set against each other, or why none may.

Also whether two trials were measured in turn, so that what disturbed one disturbed the other.

::

    round        1        2        3
    A          |--|        |--|   |--|
    B             |--|  |--|         |--|      time ->

A sweep makes its attempts like this (:mod:`orchestrator.schedule.order`). A machine that is slower
for a while then slows both attempts of a round, and their ratio does not see it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.conditions import (
    AS_THREADS,
    UNKNOWN,
    Conditions,
    difference,
    software_difference,
)
from orchestrator.measure.grouping import grouped
from orchestrator.measure.wording import counted
from orchestrator.report.analyse.differences import differences
from orchestrator.report.analyse.measured import believable, class_of, valid

Attempts = Mapping[str, Sequence[AttemptReport]]
Config = Mapping[str, Any]
Configs = Mapping[str, Config]


@dataclass(frozen=True)
class Chosen:
    """The attempts of one pair that may be compared, or why none may."""

    a: tuple[AttemptReport, ...] = ()
    b: tuple[AttemptReport, ...] = ()
    reason: str | None = None
    note: str | None = None


def pair(a: Attempts, b: Attempts, configs: Configs | None = None) -> list[tuple[str, str]]:
    """Hashes to compare: the same one on both sides, or the only one of each.

    Parameters
    ----------
    configs : mapping of config hash to identity, optional
        With these, also two that differ in nothing but their environment's packages: a sweep on the
        newest versions has other hashes with each lock. One that a side has several of has no pair.
    """
    shared = [(h, h) for h in a if h in b]
    if not shared and len(a) == 1 and len(b) == 1:
        return [(next(iter(a)), next(iter(b)))]
    sides = [
        grouped((h for h in side if h not in other), lambda h: _but_for_packages(h, configs))
        for side, other in ((a, b), (b, a))
    ]
    return shared + [
        (hashes[0], sides[1][trial][0])
        for trial, hashes in sides[0].items()
        if len(hashes) == 1 == len(sides[1].get(trial, ()))
    ]


def _but_for_packages(config_hash: str, configs: Configs | None) -> str:
    """Equal for trials that differ in nothing but their environment, where that is known."""
    identity = (configs or {}).get(config_hash)
    if identity is None:
        return config_hash
    return json.dumps({**identity, "environment": None}, sort_keys=True)


def choose(
    a: Sequence[AttemptReport],
    b: Sequence[AttemptReport],
    *,
    allow_different: bool = False,
    across_software: bool = True,
    configs: tuple[Config | None, Config | None] = (None, None),
    names: tuple[str, str] = ("A", "B"),
) -> Chosen:
    """Attempts that were measured well, on one machine and of one content; each side of one class.

    Where sides hold attempts of several machines or contents, those that both have and that most
    attempts share are compared; a note says so. Content is looked at only where both sides are one
    trial: two configurations may well name two models. Likewise the number of cores, if one of the
    two asks for so many threads and the other for all there are.

    Parameters
    ----------
    allow_different : bool
        Whether machine and content may differ too.
    across_software : bool
        Whether software may: then a note says in what, else there is no pair.
    configs : tuple of identity or None
        Of either side, where known: an environment's packages are told as well.
    """
    usable = []
    for name, side in zip(names, (a, b), strict=True):
        good = valid(side)
        if not good:
            return Chosen(reason=f"{name} has no valid attempt ({_endings(side)})")
        usable.append(good)
    hashes = [side[-1].config_hash for side in usable]
    known = {h: config for h, config in zip(hashes, configs, strict=True) if config is not None}
    one_trial = len({_but_for_packages(h, known) for h in hashes}) == 1
    alike = _Alike(allow_different, one_trial, cores=one_trial or not _cores_are_asked(usable))
    keys = [[alike.key(r) for r in side] for side in usable]
    counts = [Counter(side) for side in keys]
    shared = counts[0].keys() & counts[1].keys()
    if not shared:
        return Chosen(reason=alike.difference(usable[0][-1], usable[1][-1]))
    best = max(shared, key=lambda key: (not key[0], min(side[key] for side in counts), str(key)))
    there = [
        [r for r, key in zip(side, of, strict=True) if key == best]
        for side, of in zip(usable, keys, strict=True)
    ]
    kept = _of_one_class(there)
    left = sum(map(len, usable)) - sum(map(len, kept))
    other = f"{counted(left, 'attempt')} under other conditions, or unknown ones, left out"
    notes = [other] if left else []
    software = ", ".join(software_between(kept[0], kept[1], configs))
    if software and not across_software:
        return Chosen(reason=f"different software: {software}")
    if software:
        notes.append(software)
    return Chosen(tuple(kept[0]), tuple(kept[1]), note="; ".join(notes) or None)


def software_between(
    a: Sequence[AttemptReport],
    b: Sequence[AttemptReport],
    configs: tuple[Config | None, Config | None],
) -> tuple[str, ...]:
    """What software the attempts of two trials, newest last, do not share: a package each.

    Of two environments all their packages; else those that both trials depend on.
    """
    if not a or not b or a[-1].conditions is None or b[-1].conditions is None:
        return ()
    one, other = ((config or {}).get("environment") for config in configs)
    if not one or not other:
        return software_difference(a[-1].conditions, b[-1].conditions)
    found = differences(a[-1], b[-1], (one, other))
    return tuple(str(each) for each in found if each.kind not in ("kernel", "commit"))


def _of_one_class(sides: Sequence[Sequence[AttemptReport]]) -> list[list[AttemptReport]]:
    """Of each side the attempts of one class: one that both have, else each side's newest."""
    classes = [Counter(map(class_of, side)) for side in sides]
    if shared := classes[0].keys() & classes[1].keys():
        best = max(shared, key=lambda key: (min(side[key] for side in classes), key))
        return [[r for r in side if class_of(r) == best] for side in sides]
    return [believable(side) for side in sides]


def _cores_are_asked(sides: Sequence[Sequence[AttemptReport]]) -> bool:
    """Whether some of the attempts, and not all, asked for as many threads as they had cores."""
    conditions = [r.conditions for side in sides for r in side if r.conditions is not None]
    return len({each.machine.get("cores") == AS_THREADS for each in conditions}) > 1


_Key = tuple[bool, "str | None", "str | None"]


@dataclass(frozen=True)
class _Alike:
    """What must be equal to compare.

    Attributes
    ----------
    anything : bool
        Machine and content may differ.
    one_trial : bool
        Content must be equal, too.
    cores : bool
        So must the number of cores.
    """

    anything: bool
    one_trial: bool
    cores: bool

    def key(self, report: AttemptReport) -> _Key:
        """Simulated, machine, content."""
        known = {**report.facts, **{k: v for k, v in report.provenance.items() if v is not None}}
        simulated = bool(known.get("simulated"))
        if self.anything:
            return simulated, None, None
        machine, content = known.get("hardware_fingerprint"), known.get("weights_digest")
        if (conditions := self._conditions(report)) is not None:
            machine, content = (conditions.ids[group] for group in ("machine", "content"))
            if UNKNOWN in (machine, content if self.one_trial else ""):
                content = report.attempt_id
        return (
            simulated,
            None if machine is None else str(machine),
            None if content is None or not self.one_trial else str(content),
        )

    def difference(self, one: AttemptReport, other: AttemptReport) -> str:
        """Why two attempts that differ in this may not be compared."""
        sides = [replace(self, anything=False).key(report) for report in (one, other)]
        if sides[0][0] != sides[1][0]:
            return "simulated attempts do not compare with real ones"
        before, now = self._conditions(one), self._conditions(other)
        if before and now:
            return f"different conditions: {difference(before, now)}"
        for what, position in (("hardware", 1), ("weights", 2)):
            if sides[0][position] != sides[1][position]:
                shown = [
                    str(side[position])[:24] if side[position] else "unknown" for side in sides
                ]
                return f"different {what}: {shown[0]} and {shown[1]}"
        return "no attempts under the same conditions"

    def _conditions(self, report: AttemptReport) -> Conditions | None:
        """Those of a report that matter."""
        found = report.conditions
        if found is None:
            return None
        machine = {k: v for k, v in found.machine.items() if k != "cores" or self.cores}
        return Conditions(machine, {}, found.content if self.one_trial else {})


def _endings(side: Sequence[AttemptReport]) -> str:
    if not side:
        return "none recorded"
    names = Counter(
        "invalid by its verdict"
        if r.outcome is Outcome.OK and r.verdict.state == "invalid"
        else r.outcome.value
        for r in side
    )
    return ", ".join(f"{count} {name}" for name, count in sorted(names.items()))


# Judged by rounds, k attempts a side have k - 1 degrees of freedom where they would have 2 (k - 1).
# From five on that widens an interval by less than a sixth, where rounds have nothing in common.
LEAST_ROUNDS = 5


def rounds_of(
    a: Sequence[AttemptReport], b: Sequence[AttemptReport]
) -> list[tuple[AttemptReport, AttemptReport]]:
    """The attempts of two trials, round by round; empty where they were not made in turn.

    That is decided by the clock alone: both n-th attempts began before either of the next round.
    """
    if len(a) != len(b) or len(a) < LEAST_ROUNDS:
        return []
    rounds = list(zip(sorted(a, key=_began), sorted(b, key=_began), strict=True))
    in_turn = all(
        max(map(_began, first)) < min(map(_began, then)) for first, then in pairwise(rounds)
    )
    return rounds if in_turn else []


def _began(report: AttemptReport) -> float:
    return report.started_at
