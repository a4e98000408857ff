"""Everything a sweep's report consists of, as files: page, Markdown, CSV, JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.attempt import AttemptReport
from orchestrator.measure.figures import Figure
from orchestrator.report.analyse.rows import SweepTable, build_table, tasks_of
from orchestrator.report.show.answer import sentences
from orchestrator.report.show.export import to_csv, to_json_text, to_markdown
from orchestrator.report.show.figures import default_figures, draw, metrics_of
from orchestrator.report.show.figures.strips import draw_strips
from orchestrator.report.show.html import Strip, common_provenance, page
from orchestrator.telemetry.recorded_series import read_histories

if TYPE_CHECKING:
    from orchestrator.plan.plan import Plan

# What strips may add to a page that has to stay under 6 MB, of which plotly takes 4.8.
MAX_STRIPS = 60
MAX_STRIP_BYTES = 700_000

#: From an attempt's id to its ``telemetry.parquet``, or None where it has none.
TelemetryOf = Callable[[str], "bytes | None"]


def report_files(
    plan: Plan,
    reports: Mapping[str, Sequence[AttemptReport]],
    *,
    command: str | None = None,
    telemetry: TelemetryOf | None = None,
    noise: float | None = None,
) -> dict[str, bytes]:
    """``report.html``, ``report.md``, ``table.csv`` and ``table.json`` of a sweep.

    Parameters
    ----------
    plan : Plan
        The sweep.
    reports : mapping of str to sequence of AttemptReport
        All attempts known, by config hash.
    command : str, optional
        What to type to run the sweep again; shown at the page's foot.
    telemetry : callable, optional
        Reads an attempt's stored telemetry; the page has no strips without it.
    noise : float, optional
        Relative A/A noise recorded for this hardware.
    """
    table = build_table(plan, reports, noise=noise)
    figures = task_figures(plan) or default_figures(table)
    extra = [name for figure in figures for name in metrics_of(figure) if name not in table.metrics]
    # Figures may show what the table has no room for.
    every = [*table.metrics, *extra]
    whole = build_table(plan, reports, metrics=every, noise=noise) if extra else table
    drawn = [d for figure in figures if (d := draw(figure, whole, reports)) is not None]
    strips = list(_strips(table, reports, telemetry)) if telemetry is not None else []
    html = page(table, drawn, strips=strips, provenance=common_provenance(reports), command=command)
    texts = {
        "report.html": html,
        "report.md": to_markdown(table, summary=sentences(table)),
        "table.csv": to_csv(table),
        "table.json": to_json_text(table),
    }
    return {name: text.encode("utf-8") for name, text in texts.items()}


def task_figures(plan: Plan) -> list[Figure]:
    """Figures that the plan's tasks ask for, without repeats."""
    return list(dict.fromkeys(figure for task in tasks_of(plan) for figure in task.figures))


def _strips(
    table: SweepTable, reports: Mapping[str, Sequence[AttemptReport]], telemetry: TelemetryOf
) -> Iterator[Strip]:
    """Strips of the attempts in the table's order, as many as the page has room for."""
    room = MAX_STRIP_BYTES
    shown = 0
    for row in table.rows:
        for report in reports.get(row.hash, ()):
            if shown == MAX_STRIPS or room <= 0:
                return
            content = telemetry(report.attempt_id)
            try:
                drawn = draw_strips(report, read_histories(content)) if content else None
            except ValueError:
                # A damaged file costs its strip, not the whole report.
                continue
            if drawn is None:
                continue
            strip = Strip(row.label, report.outcome.value, report.verdict.state, drawn)
            room -= len(strip.drawn.to_json())
            shown += 1
            yield strip
