"""What a proof of behaviour found, and how a cache is judged, on whatever engine it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.measure import Recorder

PROVEN, UNDECIDED, FAILED = "proven", "undecided", "failed"
#: The cached logits' error over that of logits without the context, at most.
CACHE_SHARE = 0.1
# A format's rounding is a typical figure: now and then it is this many times as large.
_ROUNDINGS = 2.0


@dataclass(frozen=True)
class Finding:
    """What one proof found.

    Attributes
    ----------
    state : str
        ``proven``, ``undecided`` or ``failed``.
    got : str
        The figures it rests on.
    """

    state: str
    got: str

    def record(self, recorder: Recorder, what: str, asked: str) -> None:
        """Record it; :class:`Mismatch` where it failed."""
        shown = self.got if self.state == PROVEN else f"{self.state}: {self.got}"
        recorder.engaged(what, asked, shown, ok=self.state != FAILED)


def judge_finite(numbers: bool) -> Finding:
    """Whether all that was computed are numbers."""
    return Finding(PROVEN, "numbers") if numbers else Finding(FAILED, "NaN or infinity")


def judge_cache(
    error: float,
    control: float,
    from_control: float,
    spread: float,
    rounding: float,
    *,
    tokens: int,
) -> Finding:
    """Whether a cache was one.

    Parameters
    ----------
    error, control : float
        Distance to the whole sequence's logits of the cached ones, and of those without context.
    from_control : float
        Distance between these two.
    spread : float
        Of the whole sequence's logits.
    """
    got = f"error {error:.2g} against {control:.2g} without context, over {tokens} tokens"
    if control > 0.0 and error <= CACHE_SHARE * control:
        return Finding(PROVEN, got)
    if not math.isfinite(error):
        return Finding(FAILED, got)
    # The very logits that no context gives, or an error beyond what rounding does.
    if control > 0.0 and from_control <= CACHE_SHARE * control:
        return Finding(FAILED, got)
    if control >= rounding / CACHE_SHARE * spread > 0.0:
        if error > _ROUNDINGS * rounding * spread:
            return Finding(FAILED, got)
        return Finding(UNDECIDED, f"{got}: the error is one that rounding makes")
    return Finding(UNDECIDED, f"{got}: context changes these logits no more than rounding does")
