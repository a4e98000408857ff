"""What takes the largest shares of a whole: one bar a trial, cut into its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.measure.figures import Ranking
from orchestrator.report.analyse.measured import believable
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.figures.drawn import (
    MAX_BARS,
    Drawn,
    Reports,
    cut,
    drawn,
    stacked,
    wrapped,
)

# As many parts as there are colours that can be told apart; the others are one grey part.
MAX_PARTS = 7
_REST = "all others"
_REST_COLOUR = "#8a929c"


def draw_ranking(figure: Ranking, table: SweepTable, reports: Reports) -> Drawn | None:
    """Bars of 100 % each; parts in the order of what they take over all trials."""
    shares: dict[str, dict[str, float]] = {}
    for row in table.rows:
        attempts = believable(reports.get(row.hash, ())) if row.outcome == "ok" else []
        if attempts and (found := _mean_shares([a.facts.get(figure.fact) for a in attempts])):
            shares[wrapped(row.label)] = found
    if not shares:
        return None
    labels = list(shares)[:MAX_BARS]
    totals: dict[str, float] = {}
    for label in labels:
        for name, share in shares[label].items():
            totals[name] = totals.get(name, 0.0) + share
    parts = sorted(totals, key=lambda name: -totals[name])[:MAX_PARTS]
    shown = {name: [shares[label].get(name, 0.0) for label in labels] for name in parts}
    rest = [max(1.0 - sum(taken), 0.0) for taken in zip(*shown.values(), strict=True)]
    plot = stacked(
        labels, {**shown, _REST: rest}, lambda name: f"%{{y}}<br>{name}: %{{x:.1%}}<extra></extra>"
    )
    plot.data[-1].marker.color = _REST_COLOUR
    plot.update_layout(xaxis={"tickformat": ".0%", "range": [0, 1]})
    return drawn(
        figure.title,
        f"Shares of the whole, which is 100 %. {figure.caption}".strip()
        + cut(len(shares), MAX_BARS),
        plot,
    )


def _mean_shares(found: Sequence[Any]) -> dict[str, float]:
    """Mean share of each named part over the attempts that tell it."""
    told = [rows for rows in found if isinstance(rows, Sequence) and not isinstance(rows, str)]
    sums: dict[str, float] = {}
    for rows in told:
        for row in rows:
            if isinstance(row, Mapping) and isinstance(row.get("share"), (int, float)):
                name = str(row.get("name", "?"))
                sums[name] = sums.get(name, 0.0) + float(row["share"]) / len(told)
    return sums
