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
from orchestrator.report.analyse.labels import short_hash
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.analyse.trial_row import TrialRow
from orchestrator.report.show.style import VERDICT_MARKS, standing_mark, standings_legend
from orchestrator.report.show.units import MISSING, ratio, scale_of

_MOST_MARKDOWN_ROWS = 200
# MLflow cuts off what is wider than its page, and folds a description after some three lines.
_MOST_PAGE_METRICS = 6
# Between a sign and its ratio: alone at a line's end it reads as part of the figure before.
_NO_BREAK = "\u00a0"
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
    parts = [f"# {table.sweep}"]
    if table.description:
        parts.append(table.description)
    parts += [*summary, *_markdown_body(table, table.metrics)]
    return "\n\n".join(parts) + "\n"


def to_page_markdown(table: SweepTable, *, summary: Sequence[str] = ()) -> str:
    """The same for the description of the sweep's MLflow run, whose page has a heading already.

    The answer comes first, since the page shows only the first lines until it is unfolded; columns
    that would be cut off at the page's edge are left to the report.
    """
    shown = table.metrics[:_MOST_PAGE_METRICS]
    parts = [*summary, *_markdown_body(table, shown)]
    if len(shown) < len(table.metrics):
        parts.append("All columns, and figures: `report.html` among the artifacts.")
    return "\n\n".join(parts) + "\n"


def _markdown_body(table: SweepTable, metrics: Sequence[str]) -> list[str]:
    parts = ["**" + " · ".join(f"{n} {o}" for o, n in table.outcomes.items()) + "**"]
    measured = [row for row in table.rows if row.outcome in ("ok", "invalid")]
    names = [n for n in metrics if any(r.cells[n].median is not None for r in measured)]
    if measured and names:
        parts.append(_markdown_table(table, measured[:_MOST_MARKDOWN_ROWS], names))
        if len(measured) > _MOST_MARKDOWN_ROWS:
            parts.append(f"… and {len(measured) - _MOST_MARKDOWN_ROWS} more trials in `table.csv`.")
        parts.append(_legend(measured, table.tau))
        parts += [f"No ratios: {_md(reason)}." for reason in table.missing_ratios]
    if table.failures:
        parts.append("## Without a result to rely on")
        lines = [
            f"- `{row.outcome}` {_md(row.label)} `{short_hash(row.hash)}`: {_md(row.reason or '')}"
            for row in table.failures[:_MOST_MARKDOWN_ROWS]
        ]
        parts.append("\n".join(lines))
    return parts


def _markdown_table(table: SweepTable, rows: Sequence[TrialRow], names: Sequence[str]) -> str:
    scales = {}
    for name in names:
        cells = [row.cells[name] for row in rows if row.cells[name].median is not None]
        scales[name] = scale_of([cell.median for cell in cells], cells[0].unit)
    heads = [
        f"{table.title(n)} ({scales[n].symbol})" if scales[n].symbol else table.title(n)
        for n in names
    ]
    lines = [
        "| " + " | ".join(["trial", "hash", *heads]) + " |",
        "|" + "|".join(["---", "---", *("---:" for _ in names)]) + "|",
    ]
    for row in rows:
        mark = VERDICT_MARKS[row.verdict][0]
        name = f"**{_md(row.label)}**" if row.baseline else _md(row.label)
        cells_text = []
        for metric in names:
            cell = row.cells[metric]
            text = MISSING
            if cell.median is not None:
                text = scales[metric].interval(cell.median, cell.ci_low, cell.ci_high)
            if cell.judged and cell.ratio is not None and row.outcome == "ok":
                sign = standing_mark(cell.judged, cell.spec.better)
                text += f" ({f'{sign}{_NO_BREAK}{ratio(cell.ratio)}'.strip()})"
            cells_text.append(text)
        lines.append(
            "| " + " | ".join([f"{mark} {name}", f"`{short_hash(row.hash)}`", *cells_text]) + " |"
        )
    return "\n".join(lines)


def _legend(rows: Sequence[TrialRow], tau: float) -> str:
    signs = standings_legend(tau)
    verdicts = dict.fromkeys(row.verdict for row in rows)
    marks = ", ".join(f"{VERDICT_MARKS[v][0]} {v}" for v in verdicts)
    based = "; bold: baseline" if any(row.baseline for row in rows) else ""
    return f"Median ± half of its 95 % interval (ratio to the baseline: {signs}). {marks}{based}."


def _cell_json(cell: Cell) -> dict[str, Any]:
    if cell.median is None:
        return {"value": None, "unit": cell.unit, "reason": cell.reason}
    found = {name: getattr(cell, name) for name in _STATISTICS}
    return {**found, "unit": cell.unit, "standing": cell.standing}


def _plain(value: object) -> str:
    """A value for CSV: empty for None, full precision for floats, JSON's spelling of booleans."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def _md(text: str) -> str:
    """Text inside a Markdown table or list: a pipe or a line break must not end the cell."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    for sign in "|*_`<>[]":
        text = text.replace(sign, f"\\{sign}")
    return text
