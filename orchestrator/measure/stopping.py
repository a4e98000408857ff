"""When to stop repeating: once the median is known well enough, or at a cap.

A rule that looks after every repetition and stops at the first narrow interval finds narrow
intervals by luck: with 3 % noise and a half-width of 2 %, half of all attempts would stop at 12
samples or fewer, and the 95 % interval reported for them covers the median in 91 % of cases.
Against that luck the interval looked at is wider than the one reported, in three ways:

- its confidence is Bonferroni's over the looks there can be (standard: 41 looks, 99.88 %);
- the end further from the median decides, not the mean of both;
- it must have been narrow enough at the two looks before as well.

Measured with the same noise: 43 samples on average, and the reported interval covers in 95 %.
A quiet series (1 % noise under a half-width of 2 %) still stops at the least number of repetitions.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import InputError

# Looks in a row at which the interval must be narrow enough.
LOOKS_IN_A_ROW = 3


@dataclass(frozen=True)
class WithinConfidence:
    """Ends sampling when the CI of the median lies within ``relative_half_width`` of it.

    Nothing is drawn: the decision depends on the samples alone, and takes next to no time or memory
    in the middle of what is measured, however many looks there may be.

    Attributes
    ----------
    relative_half_width : float
        How far the interval may reach to either side, relative to the median.
    confidence : float
        Of all looks together.
    looks : int
        How many times the rule may be asked: ``max_repetitions - min_repetitions + 1``.
    """

    relative_half_width: float
    confidence: float = 0.95
    looks: int = 1

    def met(self, values: Sequence[float]) -> bool:
        """Whether the median of ``values`` is known well enough. Pure."""
        n = len(values)
        if n < 2:
            return False
        looks = range(n, max(1, n - LOOKS_IN_A_ROW), -1)
        return all(self._narrow(values[:look]) for look in looks)

    def _narrow(self, values: Sequence[float]) -> bool:
        from orchestrator.statistics.medians import median_interval

        median = statistics.median(values)
        low, high = median_interval(values, (1.0 - self.confidence) / max(1, self.looks) / 2.0)
        return max(high - median, median - low) <= self.relative_half_width * abs(median)


@dataclass(frozen=True)
class StoppingProtocol:
    """Warm-up, the least number of repetitions, and the rules that end sampling after it.

    Attributes
    ----------
    warmup : int
        Warm-up repetitions; fixed before the run, for "until stable" would differ between runs.
    min_repetitions : int
        No rule is asked before this many measured repetitions, the caps included.
    max_repetitions : int
    max_time_s : float
        Of the measured repetitions. One that is running is never cut.
    confidence : WithinConfidence
    """

    warmup: int
    min_repetitions: int
    max_repetitions: int
    max_time_s: float
    confidence: WithinConfidence

    @classmethod
    def of(cls, protocol: Mapping[str, Any]) -> StoppingProtocol:
        """From the identity's ``protocol``; :class:`InputError` where it cannot be meant."""
        try:
            warmup = int(protocol["warmup"])
            least = int(protocol["min_repetitions"])
            most = int(protocol["max_repetitions"])
            max_time_s = float(protocol["max_time_s"])
            half_width = float(protocol["ci_relative_half_width"])
        except KeyError as missing:
            raise InputError(f"{missing.args[0]} is missing", where="protocol") from None
        if warmup < 0 or least < 1 or most < least or not max_time_s > 0 or not half_width > 0:
            raise InputError(
                f"conflict: warmup {warmup}, min_repetitions {least}, max_repetitions {most}, "
                f"max_time_s {max_time_s:g}, ci_relative_half_width {half_width:g}",
                where="protocol",
                fix="Need warmup >= 0, 1 <= min_repetitions <= max_repetitions, the others > 0.",
            )
        confidence = float(protocol.get("confidence", 0.95))
        rule = WithinConfidence(half_width, confidence, most - least + 1)
        return cls(warmup, least, most, max_time_s, rule)

    def stop_reason(self, values: Sequence[float], elapsed_s: float) -> str | None:
        """Why to stop after these values, which took so long; None to go on."""
        if len(values) < self.min_repetitions:
            return None
        if self.confidence.met(values):
            return "ci"
        if len(values) >= self.max_repetitions:
            return "max_repetitions"
        return "max_time" if elapsed_s >= self.max_time_s else None
