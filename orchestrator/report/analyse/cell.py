"""One metric of one trial: pooled over its attempts, and how it stands to the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.attempt import AttemptReport
from orchestrator.measure.metric import MetricSpec
from orchestrator.report.analyse.measured import absence, samples_of
from orchestrator.statistics.judge import Finding, Judged


@dataclass(frozen=True)
class Cell:
    """One metric of one trial, pooled over its attempts.

    Attributes
    ----------
    spec : MetricSpec
        The metric.
    median, ci_low, ci_high : float or None
        In the metric's SI unit; no interval where there is one value only. All None if absent.
    n : int
        Samples (over all attempts) behind the median.
    reason : str or None
        Why there is no value.
    judged : Judged or None
        The ratio to the baseline and what it means; None without a baseline.
    """

    spec: MetricSpec
    median: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    reason: str | None = None
    judged: Judged | None = None

    @property
    def name(self) -> str:
        """Of the metric."""
        return self.spec.name

    @property
    def unit(self) -> str:
        """Of the metric."""
        return self.spec.unit

    @property
    def ratio(self) -> float | None:
        """Of the medians, to the baseline."""
        return self.judged.ratio if self.judged else None

    @property
    def ratio_low(self) -> float | None:
        """Lower end of the ratio's interval."""
        return self.judged.ci_low if self.judged else None

    @property
    def ratio_high(self) -> float | None:
        """Upper end of the ratio's interval."""
        return self.judged.ci_high if self.judged else None

    @property
    def standing(self) -> Finding | None:
        """What the ratio means."""
        return self.judged.finding if self.judged else None


def pool(attempts: Sequence[AttemptReport], spec: MetricSpec, *, resamples: int = 10_000) -> Cell:
    """One metric pooled over attempts: median and interval of the hierarchical bootstrap."""
    from orchestrator.statistics.summary import summarise_attempts

    samples = samples_of(attempts, spec.name)
    if not samples:
        return Cell(spec, reason=absence(attempts, spec.name))
    # A size that every attempt has alike needs no bootstrap to be known.
    flat = len({value for values in samples for value in values}) == 1
    found = summarise_attempts(samples, resamples=1 if flat else resamples)
    reason = found.reason if found.median is None else None
    return Cell(spec, found.median, found.ci_low, found.ci_high, found.n, reason)
