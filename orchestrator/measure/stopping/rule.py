"""What a stopping rule sees and says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """The measured repetitions so far: one value of the watched metric each, and the time taken."""

    values: Sequence[float]
    elapsed_s: float


class Rule(Protocol):
    """A reason to stop sampling."""

    @property
    def reason(self) -> str:
        """The ``stop_reason`` recorded when this rule ends the sampling."""
        ...

    def met(self, progress: Progress) -> bool:
        """Whether sampling ends now. Pure; called between repetitions only."""
        ...
