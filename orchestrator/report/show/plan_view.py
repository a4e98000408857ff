"""What a sweep would run, before anything does: axes, counts, every trial and its state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column
from rich.text import Text

from orchestrator.attempt import Resources
from orchestrator.measure.grouping import grouped
from orchestrator.measure.vocabulary import spec_for
from orchestrator.measure.wording import counted
from orchestrator.plan.comparison import varying_axes
from orchestrator.plan.plan import unrun
from orchestrator.report.analyse.labels import (
    axis_names,
    axis_value,
    labels_of,
    plain_label,
    short_hash,
)
from orchestrator.report.show.parts import GAP, filled, grid, numbers, prose, words
from orchestrator.report.show.units import quantity

if TYPE_CHECKING:
    from orchestrator.plan.plan import Plan, TrialState

MAX_TRIALS = 40
MAX_REASONS = 12
_MOST_VALUES = 12
_LONGEST_LABEL = 30
_UNBOUNDED = 10_000
WHOLE_NODE = "whole node"
_STATE_STYLE = {
    "new": "cyan",
    "stale": "yellow",
    "cached": "green",
    "failed": "red",
    "infeasible": "magenta",
}


def plan_view(plan: Plan, states: Mapping[str, TrialState]) -> RenderableType:
    """A plan as a rich renderable; a trial that ``states`` lacks is new (or infeasible)."""
    found = {t.hash: states.get(t.hash) or unrun(t) for t in plan.trials}
    parts: list[RenderableType] = [Text.assemble((plan.sweep, "bold"), f"  {plan.description}")]
    parts.append(_counts(plan, found))
    if plan.trials:
        parts += [Text(""), _axes(plan), Text(""), _Trials(plan, found)]
    left = len(plan.trials) - MAX_TRIALS
    if left > 0:
        parts.append(Text(f"… and {left} more trials: --json has them all", style="italic"))
    parts += _reasons(plan, found)
    return Group(*parts)


def resources_text(resources: Resources) -> str:
    """``1 GPU · 4 cores · 8 GiB``; every core of a node is ``a whole node``."""
    gpus = counted(resources.gpus, "GPU") if resources.gpus else ""
    cores = "" if resources.gpus else WHOLE_NODE
    if resources.cpus is not None:
        cores = counted(resources.cpus, "core")
    parts = [
        gpus + (f" ({resources.accelerator})" if resources.accelerator else ""),
        # With a GPU the cores are whatever its node has to spare.
        cores,
        quantity(resources.memory_bytes, "bytes") if resources.memory_bytes else "",
    ]
    return " · ".join(part for part in parts if part)


def _counts(plan: Plan, states: Mapping[str, TrialState]) -> Text:
    text = Text(counted(len(plan.trials), "trial"))
    separator = ": "
    for state, style in _STATE_STYLE.items():
        number = sum(found.state == state for found in states.values())
        if number:
            text.append(separator).append(f"{number} {state}", style=style)
            separator = " · "
    repeats = plan.settings.repeats
    if repeats > 1:
        text.append(f", {repeats} attempts each")
    if plan.duplicates:
        text.append(f" ({plan.duplicates} that hash alike left out)", style="dim")
    if takes := _alike(plan):
        article = "a " if takes == WHOLE_NODE else ""
        text.append(f"\neach takes {article}{takes}", style="dim")
    search = plan.settings.search
    if search.kind != "none":
        said = f"\neach begins a search over {search.over}: what it measures chooses the next level"
        text.append(said, style="dim")
    return text


def _alike(plan: Plan) -> str | None:
    """What every trial takes, where all take the same."""
    found = {resources_text(trial.resources) for trial in plan.trials}
    return found.pop() if len(found) == 1 else None


def _axes(plan: Plan) -> RenderableType:
    drawn = grid(words(style="cyan"), Column())
    for axis, values in plan.axes.items():
        shown = [axis_value(value) for value in values[:_MOST_VALUES]]
        more = f", … {len(values)} values" if len(values) > _MOST_VALUES else ""
        drawn.add_row(axis, ", ".join(shown) + more)
    if plan.baseline:
        said = ", ".join(f"{axis}={value}" for axis, value in plan.baseline.items())
        drawn.add_row(Text("baseline", style="dim"), Text(said, style="dim"))
    if not plan.axes:
        drawn.add_row("no axes", plain_label(plan.trials[0].identity))
    return drawn


@dataclass(frozen=True)
class _Trials:
    """The table of trials: a column an axis, or where those do not fit one name a trial."""

    plan: Plan
    states: Mapping[str, TrialState]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = filled(self._columns(by_axis=True))
        needed = Measurement.get(console, options.update(width=_UNBOUNDED), table).maximum + GAP
        by_axis = needed <= options.max_width and bool(varying_axes(self.plan))
        yield table if by_axis else filled(self._columns(by_axis=False))

    def _columns(self, *, by_axis: bool) -> Iterator[tuple[Column, list[RenderableType]]]:
        shown = self.plan.trials[:MAX_TRIALS]
        yield words("hash"), [short_hash(trial.hash) for trial in shown]
        yield words("state"), [_state(self.states[trial.hash]) for trial in shown]
        if by_axis:
            for axis, name in axis_names(varying_axes(self.plan)).items():
                values = [axis_value(trial.axes.get(axis), axis) for trial in shown]
                is_number = all(value.replace(".", "", 1).isdigit() for value in values)
                yield prose(name, justify="right" if is_number else "left"), [*values]
        else:
            labels = labels_of(self.plan)
            yield prose("trial"), [labels[trial.hash] for trial in shown]
        expected = [self.states[trial.hash].predicted or {} for trial in shown]
        for spec in map(spec_for, _predictions(self.states.values())):
            figures = [quantity(found.get(spec.name), spec.unit) for found in expected]
            yield numbers(f"predicted\n{spec.title}"), [*figures]
        if _alike(self.plan) is None:
            yield words("takes"), [resources_text(trial.resources) for trial in shown]


def _state(known: TrialState) -> Text:
    if known.state == "new" and known.reason:
        return Text("new !", "yellow")  # it will run, and is not expected to succeed
    return Text(known.state, _STATE_STYLE.get(known.state, ""))


def _predictions(states: Iterable[TrialState]) -> list[str]:
    """Predicted quantities to be shown, in the order first met: memory in all, and known times."""
    names: dict[str, None] = {}
    for state in states:
        found = state.predicted or {}
        names.update(dict.fromkeys(name for name, value in found.items() if value is not None))
    return [name for name in names if name == "memory_bytes" or name.endswith("_s")]


def _reasons(plan: Plan, states: Mapping[str, TrialState]) -> Sequence[RenderableType]:
    labels = labels_of(plan)
    reasoned = [trial for trial in plan.trials if states[trial.hash].reason]
    told = grouped(reasoned, lambda t: (states[t.hash].state, states[t.hash].reason or ""))
    if not told:
        return []
    drawn = grid(words(), words(), Column(ratio=1))
    for (_, reason), trials in list(told.items())[:MAX_REASONS]:
        first = trials[0].hash
        name = labels[first] if len(labels[first]) <= _LONGEST_LABEL else short_hash(first)
        if len(trials) > 1:
            name = f"{len(trials)} trials"
        drawn.add_row(_state(states[first]), name, reason)
    parts: list[RenderableType] = [Text(""), drawn]
    if len(told) > MAX_REASONS:
        parts.append(Text(f"… and {len(told) - MAX_REASONS} more reasons", style="italic"))
    return parts
