"""Proofs of behaviour of an engine that gives the logits of every token it is fed.

::

    whole    0 1 ... n-1 n      at once
    other    0 1 ... n-1 x      differs in the last token: nothing before it may move
    cached   0 1 ... n-1 | n    the last tokens on what the others left in the cache
    alone    n                  a negative control: without its context
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.engines.proof import CACHE_SHARE, FAILED, PROVEN, UNDECIDED, Finding, judge_cache
from orchestrator.measure import Recorder

if TYPE_CHECKING:
    import numpy as np

_TOKENS = 16
# Relative error of logits that single precision explains.
_EXACT = 2e-5


def prove_by_logits(
    logits_of: Callable[[list[list[int]]], Sequence[np.ndarray]],
    prompt: list[int],
    rounding: float,
    recorder: Recorder,
    *,
    tail: int = 1,
    others: Mapping[str, tuple[Finding, str]] | None = None,
) -> None:
    """Record what is found; :class:`Mismatch` for a proof that fails.

    Parameters
    ----------
    logits_of : callable
        Gives the logits, (tokens, vocabulary), of each piece of ids, fed one after the other.
    prompt : list of int
        Of one id nothing is found.
    rounding : float
        Relative error of logits that the format explains.
    tail : int
        Tokens that are fed at once on what the others left in the cache: at most half of them.
    others : mapping, optional
        What else was found, and what was asked.
    """
    found = dict(others or {})
    if len(prompt) > 1:
        found = {**_found(logits_of, prompt[:_TOKENS], rounding, tail), **found}
    recorder.fact("proofs", {name: finding.state for name, (finding, _) in found.items()})
    for name, (finding, asked) in found.items():
        finding.record(recorder, name, asked)


def _found(
    logits_of: Callable[[list[list[int]]], Sequence[np.ndarray]],
    fed: list[int],
    rounding: float,
    tail: int,
) -> dict[str, tuple[Finding, str]]:
    import numpy as np

    (whole,) = logits_of([fed])
    (other,) = logits_of([[*fed[:-1], fed[0] if fed[0] != fed[-1] else fed[1]]])
    (alone,) = logits_of([fed[-1:]])
    cut = len(fed) - min(tail, len(fed) // 2)
    cached = logits_of([fed[:cut], fed[cut:]])[1][-1:]
    finite = bool(np.isfinite(whole).all() and np.isfinite(cached).all())
    moved, spread = _distance(whole[:-1], other[:-1]), _distance(whole[:-1], 0 * whole[:-1])
    last = whole[-1:]
    return {
        "finite logits": (
            Finding(PROVEN if finite else FAILED, "all" if finite else "not all"),
            "numbers, of prefill and decode",
        ),
        "causal": (_causal(moved, spread, rounding), "a later token moves no earlier logits"),
        "cache": (
            judge_cache(
                _distance(cached, last),
                _distance(alone, last),
                _distance(alone, cached),
                _distance(last, 0 * last),
                rounding,
                tokens=len(fed),
            ),
            f"error up to {CACHE_SHARE:g} of that without context",
        ),
    }


def _causal(moved: float, spread: float, rounding: float) -> Finding:
    got = f"moved by {moved:.2g} of {spread:.2g}"
    if moved <= _EXACT * spread:
        return Finding(PROVEN, got)
    return Finding(UNDECIDED if moved <= rounding * spread else FAILED, got)


def _distance(one: np.ndarray, two: np.ndarray) -> float:
    """RMS of the difference, without what shifts a whole row: it changes no probability."""
    import numpy as np

    difference = (one - two).astype(np.float64)
    difference -= difference.mean(-1, keepdims=True)
    return float(np.sqrt(np.square(difference).mean()))
