"""The protocol of a trial as a decision: go on sampling, or stop and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import InputError
from orchestrator.measure.stopping.confidence import WithinConfidence
from orchestrator.measure.stopping.repetitions import MaxRepetitions
from orchestrator.measure.stopping.rule import Progress, Rule
from orchestrator.measure.stopping.time_cap import MaxTime


@dataclass(frozen=True)
class StoppingProtocol:
    """Warm-up, the least number of repetitions, and the rules that end sampling after it.

    Attributes
    ----------
    warmup : int
        Warm-up repetitions; fixed before the run, for "until stable" would differ between runs.
    min_repetitions : int
        No rule is asked before this many measured repetitions, the caps included.
    rules : tuple of Rule
        Asked in order; the first one met gives the ``stop_reason``.
    """

    warmup: int
    min_repetitions: int
    rules: tuple[Rule, ...]

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
        return cls(
            warmup,
            least,
            (
                WithinConfidence(
                    half_width,
                    float(protocol.get("confidence", 0.95)),
                    most - least + 1,
                    int(protocol.get("resamples", 10_000)),
                ),
                MaxRepetitions(most),
                MaxTime(max_time_s),
            ),
        )

    def stop_reason(self, progress: Progress) -> str | None:
        """Why to stop now, or None to go on."""
        if len(progress.values) < self.min_repetitions:
            return None
        return next((rule.reason for rule in self.rules if rule.met(progress)), None)
