"""The sweep's report as one self-contained page: answer, table, figures, failures, provenance.

Works offline (plotly's script is inside), in light and dark, and prints. What comes from a
configuration, a log or a host is escaped (by the template, ``assets/page.html``): a label must not
be able to run a script.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from orchestrator.attempt import AttemptReport
from orchestrator.report.analyse.cell import TrialRow
from orchestrator.report.analyse.labels import (
    axis_name,
    axis_text,
    axis_value,
    short_hash,
)
from orchestrator.report.analyse.reasons import reasons_once
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.answer import sentences
from orchestrator.report.show.figures import Drawn
from orchestrator.report.show.parts import measured_metrics, scale_for
from orchestrator.report.show.style import OUTCOME_STYLE
from orchestrator.report.show.templates import rendered
from orchestrator.report.show.units import Scale

MAX_ROWS = 500
MAX_FAILURES = 200
MAX_MATRIX = 60

_CLASS = {"red": "bad", "magenta": "bad", "yellow": "doubt", "green": "better", "dim": "soft"}


@dataclass(frozen=True)
class Strip:
    """The telemetry of one attempt: the trial it is of, how it ended, and its figure."""

    label: str
    outcome: str
    verdict: str
    drawn: Drawn


def page(
    table: SweepTable,
    figures: Sequence[Drawn],
    *,
    strips: Sequence[Strip] = (),
    provenance: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> str:
    """The whole page.

    Parameters
    ----------
    table : SweepTable
        With headline metrics.
    figures : sequence of Drawn
        In the order they are shown.
    strips : sequence of Strip
        Telemetry of attempts; the first is unfolded, the others on a click.
    provenance : mapping, optional
        What it ran on and with; shown at the foot.
    command : str, optional
        What to type to run the sweep again.
    """
    return rendered(
        "page.html",
        table,
        **page_assets(with_figures=bool(figures or strips)),
        classes=_CLASS,
        outcome_styles=OUTCOME_STYLE,
        answer=sentences(table),
        columns=list(_headings(table)),
        max_rows=MAX_ROWS,
        figures=figures,
        matrix=_matrix(table),
        failures=list(reasons_once(table.failures)),
        max_failures=MAX_FAILURES,
        strips=strips,
        attempts=sum(row.attempts for row in table.rows),
        provenance=provenance or {},
        commands=_commands(table, command),
    )


def common_provenance(reports: Mapping[str, Sequence[AttemptReport]]) -> dict[str, Any]:
    """Provenance that all attempts share, and for the rest how many different values there are."""
    found: dict[str, dict[str, Any]] = {}
    for attempts in reports.values():
        for report in attempts:
            for key, value in report.provenance.items():
                spelled = json.dumps(value, sort_keys=True, default=str)
                found.setdefault(key, {})[spelled] = value
    return {
        key: next(iter(values.values())) if len(values) == 1 else f"{len(values)} different"
        for key, values in found.items()
    }


@dataclass(frozen=True)
class Heading:
    """A column of the table: its metric, and the unit all its values are written in."""

    name: str
    title: str
    meaning: str
    scale: Scale


@dataclass(frozen=True)
class Matrix:
    """How every trial ended: the first axis down, the others across."""

    corner: str
    acrosses: Sequence[str]
    lines: Sequence[tuple[str, Sequence[TrialRow | None]]]


def page_assets(*, with_figures: bool) -> dict[str, str]:
    """Everything a page needs so as to work offline: ``css``, ``js`` and ``plotly``."""
    assets = files("orchestrator.report.show") / "assets"
    css, js = ((assets / name).read_text("utf-8") for name in ("page.css", "page.js"))
    plotly = ""
    if with_figures:
        from plotly.offline import get_plotlyjs

        plotly = get_plotlyjs()
    return {"css": css, "js": js, "plotly": plotly}


def _headings(table: SweepTable) -> Iterator[Heading]:
    """Of the metrics that any row has a value of."""
    rows = table.measured
    for name in measured_metrics(rows, table.metrics):
        spec = table.specs[name]
        meaning = f"{name}: {spec.meaning}" if spec.meaning else name
        yield Heading(name, spec.title, meaning, scale_for(rows, name))


def _matrix(table: SweepTable) -> Matrix | None:
    if len(table.axes) < 2:
        return None
    first = table.axes[0]
    downs = list(dict.fromkeys(_key(row, (first,)) for row in table.rows))
    acrosses = list(dict.fromkeys(_key(row, table.axes[1:]) for row in table.rows))
    rows = {(_key(r, (first,)), _key(r, table.axes[1:])): r for r in table.rows}
    corner = axis_name(first)
    if len(acrosses) >= len(rows):
        # A ladder fills no grid: one column, a line a trial.
        corner, acrosses, downs = "trial", ["ended"], [row.label for row in table.rows]
        rows = {(row.label, "ended"): row for row in table.rows}
    if len(downs) > MAX_MATRIX or len(acrosses) > MAX_MATRIX:
        return None
    lines = [(down, [rows.get((down, across)) for across in acrosses]) for down in downs]
    return Matrix(corner, acrosses, lines)


def _key(row: TrialRow, axes: Sequence[str]) -> str:
    parts = []
    for axis in axes:
        value = row.axes.get(axis)
        # The heading of the first column names its axis.
        bare = len(axes) == 1 and axis == next(iter(row.axes), None)
        parts.append(axis_value(value, axis) if bare else axis_text(axis, value))
    return " · ".join(parts)


def _commands(table: SweepTable, command: str | None) -> list[str]:
    """What to type for the sweep again, and for one trial of it."""
    found = [command] if command else []
    for row in table.ok[:1]:
        found.append(f"python -m orchestrator reproduce {short_hash(row.hash)}   # {row.label}")
    return found
