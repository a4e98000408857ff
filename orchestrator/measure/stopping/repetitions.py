"""Stop at the protocol's cap on repetitions."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.measure.stopping.rule import Progress


@dataclass(frozen=True)
class MaxRepetitions:
    """Ends sampling after ``limit`` measured repetitions."""

    limit: int
    reason: str = "max_repetitions"

    def met(self, progress: Progress) -> bool:
        return len(progress.values) >= self.limit
