"""A series whose samples come in groups: tokens of a repetition follow each other.

The interval of such a series rests on its repetitions, not on its samples. It is a tuple, so that
whatever only looks at the samples need not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized


class ByRepetition(tuple[float, ...]):
    """Samples in the order they were taken, and how many each repetition has.

    Parameters
    ----------
    values : iterable of float
    lengths : sequence of int
        Of the repetitions, in order; they add up to the number of values.

    Raises
    ------
    ValueError
        They do not.
    """

    lengths: tuple[int, ...]

    def __new__(cls, values: Iterable[float], lengths: Sequence[int]) -> ByRepetition:
        """Made as a tuple is."""
        made = super().__new__(cls, values)
        made.lengths = tuple(lengths)
        if sum(made.lengths) != len(made):
            raise ValueError(f"repetitions of {sum(made.lengths)} samples, there are {len(made)}")
        return made

    def __eq__(self, other: object) -> bool:
        """The same samples in the same groups."""
        return super().__eq__(other) and lengths_of(other) == self.lengths

    def __ne__(self, other: object) -> bool:
        """As tuples have it, which would not ask ``__eq__``."""
        return not self == other

    def __hash__(self) -> int:
        """Of both."""
        return hash((super().__hash__(), self.lengths))


def lengths_of(series: object) -> tuple[int, ...] | None:
    """Samples of each repetition; None where each sample is a repetition of its own."""
    if isinstance(series, ByRepetition) and any(length != 1 for length in series.lengths):
        return tuple(length for length in series.lengths if length)
    return None


def repetitions_in(series: Sized) -> int:
    """How many independent things a series holds."""
    lengths = lengths_of(series)
    return len(series) if lengths is None else len(lengths)
