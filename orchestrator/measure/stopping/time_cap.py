"""Stop at the protocol's cap on sampling time."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.measure.stopping.rule import Progress


@dataclass(frozen=True)
class MaxTime:
    """Ends sampling once the measured repetitions have taken ``limit_s`` (warm-up not counted).

    A repetition that is running is never cut: the cap is looked at between repetitions.
    """

    limit_s: float
    reason: str = "max_time"

    def met(self, progress: Progress) -> bool:
        return progress.elapsed_s >= self.limit_s
