"""Arithmetic from times to metrics, as PROTOCOL defines them. Pure; each says what it leaves out.

A sequence of n output tokens has n token times, the moments each token was there::

    start      t_0      t_1      t_2   ...   t_(n-1)
      |- ttft --|-- itl --|-- itl --|    ...    |
                |------- decode: n - 1 intervals|
      |------------------ e2e ------------------|

Tasks get these from ``clock.seconds_between(marks)``: the first interval is TTFT where the first
mark was taken before prefill, and belongs to no inter-token statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Generation:
    """Times of one generated batch: ``ttft_s`` and the intervals between its n output tokens.

    Attributes
    ----------
    ttft_s : float
        From the prompt in to the first token out.
    intervals_s : tuple of float
        Between consecutive tokens, ``n - 1`` of them; empty for a single token.
    batch : int
        Sequences generated together; each interval gives this many tokens.
    """

    ttft_s: float
    intervals_s: tuple[float, ...]
    batch: int = 1

    @classmethod
    def of(cls, seconds_between: Sequence[float], *, batch: int = 1) -> Generation:
        """From marks ``[before prefill, t_0, t_1, ...]``: the intervals between them."""
        if not seconds_between:
            raise ValueError("a generation has at least the time to its first token")
        return cls(seconds_between[0], tuple(seconds_between[1:]), batch)

    @property
    def new_tokens(self) -> int:
        """Output tokens of one sequence."""
        return len(self.intervals_s) + 1

    @property
    def decode_s(self) -> float:
        """``t_last - t_first``: prefill is not in it."""
        return sum(self.intervals_s)

    @property
    def e2e_s(self) -> float:
        """Prefill and decode of one sequence."""
        return self.ttft_s + self.decode_s

    @property
    def tpot_s(self) -> float | None:
        """``(t_last - t_first) / (n - 1)``; None for a single token."""
        return tpot_s(self.intervals_s)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """``batch (n - 1) / (t_last - t_first)``; None for a single token."""
        per_token = self.tpot_s
        return self.batch / per_token if per_token else None

    @property
    def token_times_s(self) -> list[float]:
        """Seconds from the prompt to each token."""
        return list(accumulate(self.intervals_s, initial=self.ttft_s))


def tpot_s(intervals_s: Sequence[float]) -> float | None:
    """Mean interval between the tokens of one sequence: the sum of n - 1 intervals over n - 1."""
    return sum(intervals_s) / len(intervals_s) if intervals_s else None


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
