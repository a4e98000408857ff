"""Log-probabilities along a text from a server that gives the likeliest next tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from orchestrator.engines.port import NextLogprobs
from orchestrator.measure import Mismatch

#: Likeliest tokens of each position that quality compares one by one.
TOP = 2048

Likeliest = list[tuple[int, float]]


class NextTokens(Protocol):
    """What answers."""

    def next_logprobs(
        self,
        prompt: Sequence[int],
        count: int,
        *,
        cached: bool = True,
        chosen: int | None = None,
    ) -> Likeliest:
        """The ``count`` likeliest tokens to follow ``prompt``, likeliest first.

        Each with its log-probability over the whole vocabulary. The prompt cache is used unless it
        is not to be: asked for one prefix after the other of a text, each call computes one token.

        Parameters
        ----------
        chosen : int, optional
            A token to tell of too, however unlikely: the last of the list where it is not among
            the others. A server tells of the token that it chooses, and is made to choose this
            one; of a part of a character it may tell nothing, and then the list is empty.
        """


def with_chosen(content: Sequence[Any] | None, chosen: int | None) -> Likeliest:
    """Likeliest tokens out of OpenAI's ``logprobs.content``, and the one that was to be chosen."""
    if not content:
        return []
    entries = [*content[0]["top_logprobs"]]
    if chosen is not None and all(int(entry["id"]) != chosen for entry in entries):
        entries += [content[0]] if int(content[0]["id"]) == chosen else []
    return [(int(entry["id"]), float(entry["logprob"])) for entry in entries]


def along(
    ask: Callable[..., Likeliest],
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
    rows: list[dict[int, float]] = []
    for position, target in enumerate(targets, start=len(ids) - len(targets)):
        # A whole vocabulary takes long to hand over.
        for asked, chosen in ((count, target), (vocabulary, None)):
            likeliest = ask(ids[: position + 1], asked, chosen=chosen)
            if target in (row := dict(likeliest)):
                break
        else:
            raise Mismatch(f"no probability is given for token {target}")
        rows.append(row)
    return NextLogprobs.of_rows(rows, targets, count)
