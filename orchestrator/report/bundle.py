"""Everything a sweep's report consists of, as files: page, Markdown, CSV, JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.attempt import AttemptReport
from orchestrator.measure.figures import Figure
from orchestrator.report.answer import sentences
from orchestrator.report.export import to_csv, to_json_text, to_markdown
from orchestrator.report.figures import default_figures, draw
from orchestrator.report.html import common_provenance, page
from orchestrator.report.rows import build_table

if TYPE_CHECKING:
    from orchestrator.plan import Plan


def report_files(
    plan: Plan,
    reports: Mapping[str, Sequence[AttemptReport]],
    *,
    command: str | None = None,
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
    """
    table = build_table(plan, reports)
    figures = task_figures(plan) or default_figures(table)
    extra = [
        name for figure in figures for name in _metrics_of(figure) if name not in table.metrics
    ]
    # Figures may show what the table has no room for.
    whole = build_table(plan, reports, metrics=[*table.metrics, *extra]) if extra else table
    drawn = [d for figure in figures if (d := draw(figure, whole, reports)) is not None]
    html = page(table, drawn, provenance=common_provenance(reports), command=command)
    texts = {
        "report.html": html,
        "report.md": to_markdown(table, summary=sentences(table)),
        "table.csv": to_csv(table),
        "table.json": to_json_text(table),
    }
    return {name: text.encode("utf-8") for name, text in texts.items()}


def task_figures(plan: Plan) -> list[Figure]:
    """Figures that the plan's tasks ask for, without repeats."""
    from orchestrator.errors import ConfigError
    from orchestrator.measure.registry import find_task

    figures: dict[Figure, None] = {}
    for name in dict.fromkeys(trial.identity["task"]["name"] for trial in plan.trials):
        try:
            figures.update(dict.fromkeys(find_task(name).figures))
        except (ConfigError, ImportError):
            # Recorded by somebody whose task is not installed here.
            continue
    return list(figures)


def _metrics_of(figure: Figure) -> tuple[str, ...]:
    """Metrics a figure needs pooled; distributions read raw samples instead."""
    from orchestrator.measure.figures import Bars, Breakdown, Pareto, Scaling

    if isinstance(figure, Breakdown):
        return figure.metrics
    if isinstance(figure, (Bars, Scaling)):
        return (figure.metric,)
    if isinstance(figure, Pareto):
        return tuple(name for name in (figure.x, figure.y, figure.colour) if name is not None)
    return ()
