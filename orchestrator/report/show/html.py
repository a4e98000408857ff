"""The sweep's report as one self-contained page: answer, table, figures, failures, provenance.

Works offline (plotly's script is inside), in light and dark, and prints. What comes from a
configuration, a log or a host is escaped: a label must not be able to run a script.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from orchestrator.attempt import AttemptReport
from orchestrator.report.analyse.labels import (
    axis_name,
    axis_text,
    axis_value,
    short_hash,
)
from orchestrator.report.analyse.reasons import reasons_once
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.analyse.trial_row import TrialRow
from orchestrator.report.show.answer import sentences
from orchestrator.report.show.figures import Drawn
from orchestrator.report.show.style import (
    OUTCOME_STYLE,
    VERDICT_MARKS,
    standing_mark,
    standings_legend,
)
from orchestrator.report.show.tree import flat
from orchestrator.report.show.units import MISSING, Scale, ratio, scale_of

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
    assets = files("orchestrator.report.show") / "assets"
    body = [
        _head(table),
        _answer(table),
        _table(table),
        _figures(figures),
        _matrix(table),
        _failures(table),
        _strips(strips, sum(row.attempts for row in table.rows)),
        _foot(table, provenance or {}, command),
    ]
    script = ""
    if figures or strips:
        from plotly.offline import get_plotlyjs

        script = f"<script>{get_plotlyjs()}</script>"
    css, js = ((assets / name).read_text("utf-8") for name in ("page.css", "page.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(table.sweep)}</title><style>{css}</style>{script}</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f"\n<script>{js}</script>\n</body></html>\n"
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


def _head(table: SweepTable) -> str:
    counts = "".join(
        f'<span class="{_CLASS.get(OUTCOME_STYLE.get(o, ""), "")}">{n} {escape(o)}</span>'
        for o, n in table.outcomes.items()
    )
    return (
        f'<h1>{escape(table.sweep)}</h1><p class="lead">{escape(table.description)}</p>'
        f'<p class="counts">{counts}</p>'
    )


def _answer(table: SweepTable) -> str:
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(table))
    return f'<ul class="answer">{said}</ul>' if said else ""


def _table(table: SweepTable) -> str:
    rows = [row for row in table.rows if row.outcome in ("ok", "invalid")]
    names = [n for n in table.metrics if any(row.cells[n].median is not None for row in rows)]
    if not rows or not names:
        return ""
    scales = {}
    heads = ['<th data-sort="">trial</th>']
    for name in names:
        cells = [row.cells[name] for row in rows if row.cells[name].median is not None]
        scales[name] = scale_of([cell.median for cell in cells], cells[0].unit)
        spec = table.specs[name]
        meaning = escape(f"{name}: {spec.meaning}" if spec.meaning else name, quote=True)
        unit = f"<small>{escape(scales[name].symbol)}</small>"
        heads.append(f'<th data-sort="" title="{meaning}">{escape(spec.title)}{unit}</th>')
    lines = [_row(row, names, scales) for row in rows[:MAX_ROWS]]
    cut = (
        f" The first {MAX_ROWS} of {len(rows)}; table.csv has all." if len(rows) > MAX_ROWS else ""
    )
    signs = standings_legend(table.tau)
    cut += "".join(f" No ratios: {escape(reason)}." for reason in table.missing_ratios)
    return (
        "<h2>Measured</h2>"
        f'<p class="soft">Median ± half of its 95 % interval; beneath, the ratio to the baseline of'
        f" the same group ({escape(signs)}). Click a heading to sort.{cut}</p>"
        f'<div class="scroll"><table><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _row(row: TrialRow, names: Sequence[str], scales: Mapping[str, Scale]) -> str:
    mark, style, meaning = VERDICT_MARKS[row.verdict]
    attempts = f" ({row.attempts})" if row.attempts > 1 else ""
    title = escape(f"{row.verdict}: {meaning}", quote=True)
    second_line = " · ".join((f"<code>{short_hash(row.hash)}</code>", *map(escape, row.words)))
    cells = [
        f'<td><span class="{_CLASS.get(style, "")}" title="{title}">{mark}</span> '
        f"{escape(row.label)}{attempts}<small>{second_line}</small></td>"
    ]
    for name in names:
        cell = row.cells[name]
        if cell.median is None:
            reason = escape(cell.reason or "", quote=True)
            cells.append(f'<td title="{reason}">{MISSING}</td>')
            continue
        beneath = ""
        if cell.judged and cell.ratio is not None and row.outcome == "ok":
            sign = standing_mark(cell.judged, cell.spec.better)
            kind = cell.judged.finding if sign else ""
            beneath = f'<small class="{kind}">{sign} {ratio(cell.ratio)}</small>'
        text = scales[name].interval(cell.median, cell.ci_low, cell.ci_high)
        cells.append(f'<td data-value="{cell.median!r}">{escape(text)}{beneath}</td>')
    kind = "baseline" if row.baseline else row.outcome
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _figures(figures: Sequence[Drawn]) -> str:
    parts = []
    for index, drawn in enumerate(figures):
        parts.append(
            f"<figure><h3>{escape(drawn.title)}</h3><figcaption>{escape(drawn.caption)}</figcaption>"
            f"{_plot(drawn, f'figure-{index}', drawn.title)}</figure>"
        )
    return f'<h2>Figures</h2><div class="figures">{"".join(parts)}</div>' if parts else ""


def _plot(drawn: Drawn, name: str, spoken: str) -> str:
    height = f' style="height:{drawn.height_px}px"' if drawn.height_px else ""
    return (
        f'<div class="plot"{height} data-figure="{name}" role="img"'
        f' aria-label="{escape(spoken, quote=True)}"></div>'
        f'<script type="application/json" id="{name}">{drawn.to_json()}</script>'
    )


def _strips(strips: Sequence[Strip], attempts: int) -> str:
    """Telemetry of every attempt, folded but for the first: a browser draws what is unfolded."""
    if not strips:
        return ""
    parts = []
    for index, strip in enumerate(strips):
        mark, style, meaning = VERDICT_MARKS[strip.verdict]
        slowed = f' <span class="bad">{escape(strip.drawn.caption)}</span>'
        ended = "" if strip.outcome == "ok" else f" {escape(strip.outcome)}"
        parts.append(
            f'<details class="strip"{"" if index else " open"}><summary>'
            f'<span class="{_CLASS.get(style, "")}" title="{escape(meaning, quote=True)}">{mark}'
            f"</span> {escape(strip.label)} "
            f'<span class="soft">{escape(strip.drawn.title)}{ended}</span>'
            f"{slowed if strip.drawn.caption else ''}</summary>"
            f"{_plot(strip.drawn, f'strip-{index}', f'Telemetry of {strip.label}')}</details>"
        )
    cut = f" {len(strips)} of {attempts} attempts." if len(strips) < attempts else ""
    return (
        '<h2>What the machine did meanwhile</h2><p class="soft">Read from outside the measured'
        " process; phases are shaded (measured ones darker), throttling is a bar along the top."
        f" Click an attempt to unfold it. Every reading is in its telemetry.parquet.{cut}</p>"
        + "".join(parts)
    )


def _matrix(table: SweepTable) -> str:
    """Outcomes with the first axis down and the others across."""
    if len(table.axes) < 2:
        return ""
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
        return ""
    head = "".join(f"<th>{escape(across)}</th>" for across in acrosses)
    lines = [
        f"<tr><th>{escape(down)}</th>{''.join(_ended(rows.get((down, a))) for a in acrosses)}</tr>"
        for down in downs
    ]
    return (
        '<h2>How every trial ended</h2><div class="scroll"><table class="matrix"><thead><tr>'
        f"<th>{escape(corner)}</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        "</table></div>"
    )


def _ended(row: TrialRow | None) -> str:
    if row is None:
        return "<td></td>"
    ok = row.outcome == "ok"
    kind = "ok" if ok else _CLASS.get(OUTCOME_STYLE.get(row.outcome, ""), "")
    title = escape(f"{row.label} {short_hash(row.hash)} {row.reason or ''}", quote=True)
    mark = f" {VERDICT_MARKS[row.verdict][0]}" if ok else ""
    return f'<td class="{kind}" title="{title}">{escape(row.outcome.replace("_", " "))}{mark}</td>'


def _key(row: TrialRow, axes: Sequence[str]) -> str:
    parts = []
    for axis in axes:
        value = row.axes.get(axis)
        # The heading of the first column names its axis.
        bare = len(axes) == 1 and axis == next(iter(row.axes), None)
        parts.append(axis_value(value, axis) if bare else axis_text(axis, value))
    return " · ".join(parts)


def _failures(table: SweepTable) -> str:
    failures = table.failures
    if not failures:
        return ""
    lines = [
        f'<tr><td class="{_CLASS.get(OUTCOME_STYLE.get(row.outcome, ""), "")}">'
        f'{escape(row.outcome)}</td><td class="words">{escape(row.label)}<small><code>'
        f'{short_hash(row.hash)}</code></small></td><td class="words">'
        f"{escape(reason or 'no reason given')}</td></tr>"
        for row, reason in list(reasons_once(failures))[:MAX_FAILURES]
    ]
    cut = f" The first {MAX_FAILURES}." if len(failures) > MAX_FAILURES else ""
    return (
        f'<h2>Without a result to rely on</h2><p class="soft">{len(failures)} of {len(table.rows)}'
        f' trials.{cut}</p><div class="scroll"><table><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _foot(table: SweepTable, provenance: Mapping[str, Any], command: str | None) -> str:
    pairs = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(flat(value))}</dd>"
        for key, value in provenance.items()
    )
    best = next((row for row in table.rows if row.outcome == "ok"), None)
    commands = [command] if command else []
    if best is not None:
        commands.append(
            f"python -m orchestrator reproduce {short_hash(best.hash)}   # {best.label}"
        )
    again = f"<h2>Again</h2><pre><code>{escape(chr(10).join(commands))}</code></pre>"
    shown = f"<h2>Measured on and with</h2><dl>{pairs}</dl>" if pairs else ""
    return shown + (again if commands else "")
