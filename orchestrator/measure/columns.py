"""Columns that a task's table derives from samples, as data: which figure, of what, against what.

A task lists them in ``Task.columns`` and names them among its headline metrics::

    columns=(Column("itl_s", "p95"), Column("itl_s", "p95", over="task.new_tokens"))
    headline=("itl_s", "itl_s.p95", "itl_s.p95_long_over_short")
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.measure.metric import MetricSpec


@dataclass(frozen=True)
class Column:
    """A statistic of a metric's samples, or how much larger it is in a longer run.

    Attributes
    ----------
    metric : str
        A metric with samples.
    statistic : str
        ``p95``, ``p99``, ``mean``, ``min`` or ``max`` of the samples of all attempts together; none
        where there are too few samples for it.
    over : str or None
        An override such as ``task.new_tokens``: the statistic divided by that of the trial with the
        smallest value of it, all else equal. Only where the sweep has that axis.
    """

    metric: str
    statistic: str
    over: str | None = None

    @property
    def name(self) -> str:
        """``itl_s.p95``, or ``itl_s.p95_long_over_short``."""
        plain = f"{self.metric}.{self.statistic}"
        return plain if self.over is None else f"{plain}_long_over_short"

    def spec(self, metric: MetricSpec) -> MetricSpec:
        """What the column is, from what its metric is."""
        if self.over is None:
            share = self.statistic.removeprefix("p")
            meaning = f"{share} of 100 of these are lower" if share.isdigit() else ""
            title = f"{metric.title} {self.statistic}"
            return replace(metric, name=self.name, exact=False, title=title, meaning=meaning)
        return MetricSpec(
            self.name,
            "1",
            metric.better,
            title=f"{self.statistic} long over short",
            meaning=f"{metric.title} {self.statistic} over that of the shortest output",
        )
