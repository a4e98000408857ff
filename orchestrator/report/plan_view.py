"""What a sweep would run, before anything does: axes, counts, every trial and its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from orchestrator.attempt import Resources
from orchestrator.report.labels import (
    axis_names,
    axis_value,
    labels_of,
    metric_title,
    plain_label,
    short_hash,
    varying_axes,
)
from orchestrator.report.units import quantity, unit_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from orchestrator.plan import Plan, Trial

MAX_TRIALS = 40
MAX_REASONS = 12
_MOST_VALUES = 12
_STATE_STYLE = {"new": "cyan", "cached": "green", "failed": "red", "infeasible": "magenta"}


class KnownState(Protocol):
    """Where a trial stands before a run: ``new``, ``cached``, ``failed`` or ``infeasible``.

    One that also has ``predicted`` (names that end in their unit, ``memory_bytes``, to values)
    gets columns for it.
    """

    @property
    def state(self) -> str: ...

    @property
    def reason(self) -> str | None: ...


def plan_view(
    plan: Plan, states: Mapping[str, KnownState], *, max_trials: int = MAX_TRIALS
) -> RenderableType:
    """A plan as a rich renderable; a trial that ``states`` lacks is new (or infeasible)."""
    from rich.console import Group
    from rich.text import Text

    found = {trial.hash: _state(trial, states) for trial in plan.trials}
    parts: list[RenderableType] = [Text.assemble((plan.sweep, "bold"), f"  {plan.description}")]
    parts.append(_counts(plan, found))
    if plan.trials:
        parts += [Text(""), _axes(plan), Text(""), _trials(plan, found, max_trials)]
    left = len(plan.trials) - max_trials
    if left > 0:
        parts.append(Text(f"… and {left} more trials: --json has them all", style="italic"))
    parts += _reasons(plan, found)
    return Group(*parts)


def resources_text(resources: Resources) -> str:
    """``1 GPU · 4 cores · 8 GiB``; every core of a node is ``a whole node``."""
    gpus = f"{resources.gpus} GPU{'s' if resources.gpus != 1 else ''}" if resources.gpus else ""
    cores = f"{resources.cpus} core{'s' if resources.cpus != 1 else ''}"
    parts = [
        gpus + (f" ({resources.accelerator})" if resources.accelerator else ""),
        # With a GPU the cores are whatever its node has to spare.
        cores if resources.cpus is not None else "" if resources.gpus else "whole node",
        quantity(resources.memory_bytes, "bytes") if resources.memory_bytes else "",
    ]
    return " · ".join(part for part in parts if part)


@dataclass(frozen=True)
class _State:
    state: str
    reason: str | None = None


def _state(trial: Trial, states: Mapping[str, KnownState]) -> KnownState:
    if trial.hash in states:
        return states[trial.hash]
    return _State("new" if trial.infeasible is None else "infeasible", trial.infeasible)


def _counts(plan: Plan, states: Mapping[str, KnownState]) -> Text:
    from rich.text import Text

    total = len(plan.trials)
    text = Text(f"{total} trial{'s' if total != 1 else ''}")
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
    return text


def _axes(plan: Plan) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="cyan")
    grid.add_column()
    for axis, values in plan.axes.items():
        shown = [axis_value(value) for value in values[:_MOST_VALUES]]
        more = f", … {len(values)} values" if len(values) > _MOST_VALUES else ""
        grid.add_row(axis, ", ".join(shown) + more)
    if plan.baseline:
        said = ", ".join(f"{axis}={value}" for axis, value in plan.baseline.items())
        grid.add_row(Text("baseline", style="dim"), Text(said, style="dim"))
    if not plan.axes:
        grid.add_row("no axes", plain_label(plan.trials[0].identity))
    return grid


def _trials(plan: Plan, states: Mapping[str, KnownState], most: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    axes = varying_axes(plan)
    names = axis_names(axes)
    predicted = _predictions(states.values())
    shown = plan.trials[:most]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("hash", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for axis in axes:
        numeric = all(isinstance(t.axes.get(axis), (int, float)) for t in shown)
        table.add_column(names[axis], justify="right" if numeric else "left", overflow="ellipsis")
    if not axes:
        table.add_column("trial", no_wrap=True)
    for name in predicted:
        table.add_column(f"predicted {metric_title(name)}", justify="right", no_wrap=True)
    table.add_column("takes", no_wrap=True)
    for trial in shown:
        state = states[trial.hash]
        values = [axis_value(trial.axes.get(axis)) for axis in axes]
        expected = getattr(state, "predicted", None) or {}
        table.add_row(
            short_hash(trial.hash),
            Text(state.state, style=_STATE_STYLE.get(state.state, "")),
            *(values or [plain_label(trial.identity)]),
            *(quantity(expected.get(name), unit_of(name)) for name in predicted),
            resources_text(trial.resources),
        )
    return table


def _predictions(states: Iterable[KnownState]) -> list[str]:
    """Predicted quantities to be shown, in the order first met: memory in all, and known times."""
    names: dict[str, None] = {}
    for state in states:
        found = getattr(state, "predicted", None) or {}
        names.update(dict.fromkeys(name for name, value in found.items() if value is not None))
    return [name for name in names if name == "memory_bytes" or name.endswith("_s")]


def _reasons(plan: Plan, states: Mapping[str, KnownState]) -> Sequence[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    labels = labels_of(plan)
    told = [t for t in plan.trials if states[t.hash].reason]
    if not told:
        return []
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, max_width=30)
    grid.add_column(ratio=1)
    for trial in told[:MAX_REASONS]:
        state = states[trial.hash]
        style = _STATE_STYLE.get(state.state, "")
        grid.add_row(Text(state.state, style=style), labels[trial.hash], state.reason or "")
    parts: list[RenderableType] = [Text(""), grid]
    if len(told) > MAX_REASONS:
        parts.append(Text(f"… and {len(told) - MAX_REASONS} more", style="italic"))
    return parts
