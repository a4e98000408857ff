"""Arithmetic from times to metrics, as docs/protocol.md defines them.

Pure; each says what it leaves out.

A sequence of n output tokens has n token times, the moments each token was there::

    start      t_0      t_1      t_2   ...   t_(n-1)
      |- ttft --|-- itl --|-- itl --|    ...    |
                |------- decode: n - 1 intervals|
      |------------------ e2e ------------------|

``intervals_s`` below are the n - 1 intervals of decode, as ``clock.seconds_between`` gives them for
marks taken at t_0 ... t_(n-1). The time to the first token is none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def tpot_s(intervals_s: Sequence[float]) -> float | None:
    """``(t_last - t_first) / (n - 1)`` of one sequence, from its n - 1 intervals; None without."""
    return sum(intervals_s) / len(intervals_s) if intervals_s else None


def decode_tokens_per_s(intervals_s: Sequence[float], *, batch: int = 1) -> float | None:
    """``batch (n - 1) / (t_last - t_first)``: neither prefill nor its token is in it."""
    decode_s = sum(intervals_s)
    return batch * len(intervals_s) / decode_s if decode_s > 0.0 else None


def e2e_s(ttft_s: float, intervals_s: Sequence[float]) -> float:
    """Prefill and decode of one sequence."""
    return ttft_s + sum(intervals_s)


def step_tokens_per_s(tokens_of_one_step: int, step_s: float) -> float | None:
    """Training throughput: tokens of one step over the time of one step, never of all steps."""
    return tokens_of_one_step / step_s if step_s > 0.0 else None


def mfu(flops: float, seconds: float, peak_flops_per_s: float | None) -> float | None:
    """Model FLOPs utilisation; None when the device's dense peak at that dtype is not known."""
    if not peak_flops_per_s or seconds <= 0.0:
        return None
    return flops / (seconds * peak_flops_per_s)


def joules_per_token(energy_j: float | None, tokens: int) -> float | None:
    """Energy of a phase over the tokens made in it; None where the energy could not be read."""
    return energy_j / tokens if energy_j is not None and tokens > 0 else None


def shares(
    parts_s: Mapping[str, float], whole_s: float, *, other: str = "other"
) -> dict[str, float]:
    """Parts of a time as fractions that add up to 1; what no part covers is ``other``.

    Parameters
    ----------
    parts_s : mapping of str to float
        Seconds of disjoint parts.
    whole_s : float
        Wall time that holds them.

    Raises
    ------
    ValueError
        If a part is negative or the parts add up to more than the whole (by over 0.1 %): then they
        overlap, across threads or with each other, and are no shares of it.
    """
    if whole_s <= 0.0 or min(parts_s.values(), default=0.0) < 0.0:
        raise ValueError("times must be positive to have shares")
    covered = sum(parts_s.values())
    if covered > whole_s * 1.001:
        raise ValueError(
            f"parts take {covered:.6g} s of {whole_s:.6g} s: they overlap and are no shares of it"
        )
    # Rounding may let disjoint parts pass the whole by a hair: they still add up to 1.
    total = max(whole_s, covered)
    fractions = {name: seconds / total for name, seconds in parts_s.items()}
    return {**fractions, other: (total - covered) / total}
