"""Log-probabilities along a text from a server that gives the likeliest next tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.engines.port import NextLogprobs
from orchestrator.measure import Mismatch

#: Likeliest tokens of each position that quality compares one by one.
TOP = 2048

Likeliest = list[tuple[int, float]]


class NextTokens(Protocol):
    """What answers."""

    def next_logprobs(self, prompt: Sequence[int], count: int, *, cached: bool = True) -> Likeliest:
        """The ``count`` likeliest tokens to follow ``prompt``, likeliest first.

        Each with its log-probability over the whole vocabulary. The prompt cache is used unless it
        is not to be: asked for one prefix after the other of a text, each call computes one token.
        """


def along(
    ask: Callable[[Sequence[int], int], Likeliest],
    ids: Sequence[int],
    targets: Sequence[int],
    count: int,
    vocabulary: int,
) -> NextLogprobs:
    """As :meth:`orchestrator.engines.port.Session.next_logprobs`, a request a position.

    Parameters
    ----------
    ask : callable
        As :meth:`NextTokens.next_logprobs`.
    count : int
        How many of the likeliest tokens are kept.

    Raises
    ------
    Mismatch
        No probability is given for a token that follows.
    """
    import numpy as np

    found: list[Likeliest] = []
    followed: list[float] = []
    for position, target in enumerate(targets, start=len(ids) - len(targets)):
        # The token that follows is rarely far down; a whole vocabulary takes long to hand over.
        for asked in (count, vocabulary):
            likeliest = ask(ids[: position + 1], asked)
            known = dict(likeliest)
            if target in known:
                break
        else:
            raise Mismatch(f"no probability is given for token {target}")
        followed.append(known[target])
        found.append(likeliest[:count])
    likeliest_ids = np.array([[token for token, _ in row] for row in found], np.int32)
    logprobs = np.array([[value for _, value in row] for row in found], np.float32)
    return NextLogprobs(np.array(followed), likeliest_ids[:, 0], logprobs, likeliest_ids)
