"""Draws the answer of a bisection: the culprit and its effect, the evidence, the commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from orchestrator.measure.metric import MetricSpec
from orchestrator.report.analyse.labels import short_hash
from orchestrator.report.show.parts import filled, numbers, prose, words
from orchestrator.report.show.units import MISSING, ratio
from orchestrator.search.coupled import Set
from orchestrator.search.culprit import Answer, Culprit
from orchestrator.search.rounds import Step
from orchestrator.statistics.judge import Judged

_STYLES = {"changed": "red", "same": "dim", "undecided": "yellow", "broken": "magenta"}


@dataclass(frozen=True)
class Change:
    """A package that has another version at the bad end than at the good one; None: not there."""

    package: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.package} {self.after} added"
        if self.after is None:
            return f"{self.package} {self.before} removed"
        return f"{self.package} {self.before} → {self.after}"


@dataclass(frozen=True)
class BisectView:
    """An :class:`Answer` that rich can print.

    Attributes
    ----------
    spec : MetricSpec
        Of the metric.
    changes : mapping of str to Change
        What the names in the answer mean.
    called : mapping of set to str
        What each candidate is called.
    hashes : mapping of set to str
        Config hash of each candidate.
    ends : (str, str)
        Config hashes of the good and the bad end.
    sweep : str
        The name that the rounds are recorded under.
    """

    answer: Answer
    spec: MetricSpec
    changes: Mapping[str, Change]
    called: Mapping[Set, str]
    hashes: Mapping[Set, str]
    ends: tuple[str, str]
    sweep: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        steps = self.answer.steps
        yield Text(self.sentence(), style="bold")
        yield Text("")
        yield filled(
            [
                (prose("good end with"), [Text(self.called[step.changes]) for step in steps]),
                (numbers("rounds"), [Text(_rounds(step)) for step in steps]),
                (numbers("ratio"), [Text(_ratio(step.judged)) for step in steps]),
                (words("interval"), [Text(_interval(step.judged)) for step in steps]),
                (words("finding"), [Text(step.state, _STYLES[step.state]) for step in steps]),
                (words("trial"), [Text(short_hash(self.hashes[step.changes])) for step in steps]),
            ]
        )
        yield Text("")
        for name, command in self.commands().items():
            yield Text.assemble((f"{name:<10}", "dim"), command)

    def sentence(self) -> str:
        """The answer in words."""
        answer, title = self.answer, self.spec.title
        if answer.state == "same":
            return f"{title} does not differ between the ends: {_effect(answer.ends)}"
        if answer.state == "undecided":
            among = ", ".join(self.change(name) for name in sorted(answer.suspects))
            more = f"; it is among {among}" if among else ""
            return f"undecided: {answer.reason}{more}"
        found = "; ".join(self._blamed(culprit) for culprit in answer.culprits)
        rest = f"; {answer.reason}" if answer.reason else ""
        return f"{found} (the ends: {title} {_effect(answer.ends)}){rest}"

    def _blamed(self, culprit: Culprit) -> str:
        names = [" and ".join(self.change(n) for n in sorted(each)) for each in culprit.changes]
        text = f"{' together with '.join(names)}: {self.spec.title} {_effect(culprit.step.judged)}"
        if len(names) > 1:
            why = "neither alone" if len(names) == 2 else "no fewer of them"
            text += f", {why} changes it" if culprit.alone else ", not shown for each alone"
        elif len(culprit.changes[0]) > 1:
            text += ", cannot be told apart because each needs the other"
        if needed := self.needed(culprit):
            text += f" (installed with {', '.join(self.change(n) for n in sorted(needed))})"
        return text

    def needed(self, culprit: Culprit) -> Set:
        """Changes of other packages without which the culprit cannot be installed."""
        named = {self.changes[name].package for each in culprit.changes for name in each}
        return frozenset(n for n in culprit.needed if self.changes[n].package not in named)

    def change(self, name: str) -> str:
        """``numpy 2.3.5 → 2.4.6``, ``six 1.17.0 added``."""
        return str(self.changes[name])

    def commands(self) -> dict[str, str]:
        """What to type to measure each end, and the culprit on the good end."""
        found = dict(zip(("good end", "bad end"), self.ends, strict=True))
        if self.answer.culprits:
            found["culprit"] = self.hashes[self.answer.culprits[0].step.changes]
        return {n: f"python -m orchestrator reproduce {short_hash(h)}" for n, h in found.items()}


def bisect_json(view: BisectView) -> dict[str, Any]:
    """The same as plain JSON."""
    answer = view.answer
    return {
        "sweep": view.sweep,
        "metric": view.spec.name,
        "state": answer.state,
        "reason": answer.reason,
        "good": view.ends[0],
        "bad": view.ends[1],
        "effect": _judged(answer.ends),
        "culprits": [
            {
                "packages": [one for each in culprit.changes for one in _versions(view, each)],
                "needs": _versions(view, view.needed(culprit)),
                "together": len(culprit.changes) > 1,
                "effect": _judged(culprit.step.judged),
                "hash": view.hashes[culprit.step.changes],
            }
            for culprit in answer.culprits
        ],
        "suspects": sorted(answer.suspects),
        "steps": [
            {
                "changes": sorted(step.changes),
                "hash": view.hashes[step.changes],
                "rounds": step.rounds,
                "void": step.void,
                "finding": step.state,
                "reason": step.reason,
                **_judged(step.judged),
            }
            for step in answer.steps
        ],
        "commands": view.commands(),
    }


def _versions(view: BisectView, changes: Set) -> list[dict[str, str | None]]:
    return [
        {"package": change.package, "good": change.before, "bad": change.after}
        for change in (view.changes[name] for name in sorted(changes))
    ]


def _judged(judged: Judged | None) -> dict[str, float | None]:
    names = ("ratio", "ci_low", "ci_high")
    return {name: None if judged is None else getattr(judged, name) for name in names}


def _rounds(step: Step) -> str:
    return f"{step.rounds} ({step.void} void)" if step.void else str(step.rounds)


def _ratio(judged: Judged | None) -> str:
    return ratio(judged.ratio) if judged is not None else MISSING


def _interval(judged: Judged | None) -> str:
    if judged is None or judged.ci_low is None or judged.ci_high is None:
        return ""
    return f"{judged.ci_low:.3f} – {judged.ci_high:.3f}"


def _effect(judged: Judged | None) -> str:
    interval = _interval(judged)
    return f"{_ratio(judged)} [{interval}]" if interval else _ratio(judged)
