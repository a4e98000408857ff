"""Every sample of a metric: the share at or under each value."""

from __future__ import annotations

from orchestrator.measure.figures import Distribution
from orchestrator.measure.metric import Samples
from orchestrator.report.analyse.measured import believable, metric_of
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.figures.drawn import (
    MAX_LINES,
    Drawn,
    Reports,
    cut,
    drawn,
    new_plot,
)
from orchestrator.report.show.units import scale_of

ECDF_POINTS = 200


def draw_distribution(figure: Distribution, table: SweepTable, reports: Reports) -> Drawn | None:
    """The empirical distribution of the pooled samples, a line a trial."""
    lines: list[tuple[str, list[float]]] = []
    for row in table.rows:
        samples: list[float] = []
        for report in believable(reports.get(row.hash, ())):
            metric = metric_of(report, figure.metric)
            if isinstance(metric, Samples):
                samples.extend(metric.values)
        if len(samples) > 1 and row.outcome == "ok":
            lines.append((row.label, sorted(samples)))
    if not lines:
        return None
    unit = next(
        m.unit
        for row in table.rows
        for report in reports.get(row.hash, ())
        if (m := metric_of(report, figure.metric)) is not None
    )
    scale = scale_of([values[len(values) // 2] for _, values in lines], unit)
    plot = new_plot()
    for label, values in lines[:MAX_LINES]:
        n = len(values)
        # Every sample where there are few; else quantiles, both ends among them.
        at = sorted({round(i * (n - 1) / (ECDF_POINTS - 1)) for i in range(ECDF_POINTS)})
        plot.add_scatter(
            name=label,
            x=[values[i] / scale.factor for i in at],
            y=[(i + 1) / n for i in at],
            mode="lines",
            line_shape="hv",
            hovertemplate="%{y:.1%} within %{x:.4g} " + scale.symbol,
        )
    plot.update_layout(
        xaxis_title=scale.heading(table.title(figure.metric)),
        yaxis_title="share of samples",
        yaxis_tickformat=".0%",
        showlegend=True,
    )
    return drawn(
        f"{table.title(figure.metric)}: every sample",
        "Share of samples at or under a value; steep is steady, a step is two modes."
        + cut(len(lines), MAX_LINES),
        plot,
    )
