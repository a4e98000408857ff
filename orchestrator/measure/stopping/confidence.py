"""Stop once the median is known well enough: its bootstrap CI is within a relative half-width."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.measure.stopping.rule import Progress


@dataclass(frozen=True)
class WithinConfidence:
    """Ends sampling when the CI of the median is at most ``relative_half_width`` to either side.

    The bootstrap is seeded with a constant: the decision depends on the samples alone.
    """

    relative_half_width: float
    confidence: float = 0.95
    resamples: int = 10_000
    reason: str = "ci"

    def met(self, progress: Progress) -> bool:
        if len(progress.values) < 2:
            return False
        from orchestrator.measure.statistics import median_ci

        median, low, high = median_ci(
            progress.values, confidence=self.confidence, resamples=self.resamples
        )
        return (high - low) / 2 <= self.relative_half_width * abs(median)
