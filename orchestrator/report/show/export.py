"""A sweep's table as Markdown, CSV and JSON; the Markdown also describes the sweep's MLflow run.

Pure text. CSV and JSON hold SI base units and every digit; Markdown is for reading.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from orchestrator.report.analyse.cell import Cell
from orchestrator.report.analyse.gaps import why_without_ratio
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.parts import measured_metrics, scale_for
from orchestrator.report.show.templates import rendered

_MOST_MARKDOWN_ROWS = 200
# MLflow cuts off what is wider than its page, and folds a description after some three lines.
_MOST_PAGE_METRICS = 6
_STATISTICS = ("median", "ci_low", "ci_high", "n", "ratio", "ratio_low", "ratio_high")


def to_json(table: SweepTable) -> dict[str, Any]:
    """The whole table as plain JSON, one object a trial."""
    return {
        "sweep": table.sweep,
        "description": table.description,
        "axes": list(table.axes),
        "metrics": list(table.metrics),
        "outcomes": table.outcomes,
        "trials": [
            {
                "hash": row.hash,
                "label": row.label,
                "axes": row.axes,
                "baseline": row.baseline,
                "outcome": row.outcome,
                "reason": row.reason,
                "verdict": row.verdict,
                "precision": row.precision,
                "software": list(row.software),
                "attempts": row.attempts,
                "metrics": {name: _cell_json(cell) for name, cell in row.cells.items()},
            }
            for row in table.rows
        ],
    }


def to_json_text(table: SweepTable) -> str:
    """:func:`to_json` as text; refuses NaN, which no JSON reader must be asked to guess."""
    return json.dumps(to_json(table), indent=2, allow_nan=False) + "\n"


def to_csv(table: SweepTable) -> str:
    """One line a trial, one column a statistic (``tpot_s``, ``tpot_s.ci_low`` ...), base units."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["hash", "label", *table.axes, "baseline", "outcome", "reason", "verdict", "attempts"]
    columns = [(name, s) for name in table.metrics for s in _STATISTICS]
    writer.writerow([*head, *(name if s == "median" else f"{name}.{s}" for name, s in columns)])
    for row in table.rows:
        writer.writerow(
            [
                row.hash,
                row.label,
                *(_plain(row.axes.get(axis)) for axis in table.axes),
                _plain(row.baseline),
                row.outcome,
                row.reason or "",
                row.verdict,
                row.attempts,
                *(_plain(getattr(row.cells[name], s)) for name, s in columns),
            ]
        )
    return out.getvalue()


def to_markdown(table: SweepTable, *, summary: Sequence[str] = ()) -> str:
    """The table with ratios to the baseline, failures beneath.

    Parameters
    ----------
    summary : sequence of str
        Sentences that go above the table.
    """
    return _markdown(table, table.metrics, summary, heading=True)


def to_page_markdown(table: SweepTable, *, summary: Sequence[str] = ()) -> str:
    """The same for the description of the sweep's MLflow run, whose page has a heading already.

    The answer comes first, since the page shows only the first lines until it is unfolded; columns
    that would be cut off at the page's edge are left to the report.
    """
    return _markdown(table, table.metrics[:_MOST_PAGE_METRICS], summary, heading=False)


def _markdown(
    table: SweepTable, metrics: Sequence[str], summary: Sequence[str], *, heading: bool
) -> str:
    rows = table.measured
    return rendered(
        "table.md",
        table,
        heading=heading,
        summary=summary,
        metrics=metrics,
        columns={name: scale_for(rows, name) for name in measured_metrics(rows, metrics)},
        most=_MOST_MARKDOWN_ROWS,
    )


def _cell_json(cell: Cell) -> dict[str, Any]:
    if cell.median is None:
        return {"value": None, "unit": cell.unit, "reason": cell.reason}
    found = {name: getattr(cell, name) for name in _STATISTICS}
    reason = why_without_ratio(cell)
    told = {} if reason is None else {"ratio_reason": reason}
    return {**found, "unit": cell.unit, "standing": cell.standing, **told}


def _plain(value: object) -> str:
    """A value for CSV: empty for None, full precision for floats, JSON's spelling of booleans."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)
