"""A text cut into windows that share no context, the same on every engine.

::

    text       t0 t1 t2 t3 t4 t5 t6          n + 1 tokens, n of them are predicted
    window 0   [b] t0 t1 t2 -> t1 t2 t3      b: begin of text, where the tokenizer adds it
    window 1   [b] t3 t4 t5 -> t4 t5 t6      what follows b itself is not counted

Perplexities of two engines compare only over the same tokens in the same windows: a longer context
predicts better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.engines.digest import digest_json

#: Tokens of context at most, where a task has no option for it.
WINDOW_TOKENS = 512
# Begin of text, and the token that an engine generates to say what it predicts.
_ROOM = 2


@dataclass(frozen=True)
class Windows:
    """Inputs and what follows each of them.

    Attributes
    ----------
    begin : tuple of int
        Put before every window's inputs; mostly one id or none.
    inputs, targets : tuple of tuple of int
        Of each window, equally many.
    """

    begin: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Of each window its ids, begin of text included, and its targets."""
        for inputs, targets in zip(self.inputs, self.targets, strict=True):
            yield (*self.begin, *inputs), targets

    @property
    def tokens(self) -> int:
        """Of the longest window, begin of text included."""
        return len(self.begin) + max(map(len, self.inputs))

    @property
    def digest(self) -> str:
        """Of the tokens and of how they are cut."""
        return digest_json({"begin": self.begin, "inputs": self.inputs, "targets": self.targets})

    def facts(self) -> dict[str, Any]:
        """What belongs beside a number that was measured over them."""
        return {
            "digest": self.digest,
            "count": len(self.inputs),
            "tokens": max(map(len, self.inputs)),
            "begin_of_text": list(self.begin),
        }


def window_tokens(asked: int, context: int | None) -> int:
    """Tokens of a window: as asked for, or as many as the model's context has room for."""
    return asked if context is None else max(1, min(asked, context - _ROOM))


def needed_context(scored: int, asked: int = WINDOW_TOKENS) -> int:
    """Context that scoring so many tokens takes."""
    return min(scored, asked) + _ROOM


def cut(ids: Sequence[int], window: int, begin: Sequence[int] = ()) -> Windows:
    """Cut ``ids``, one more than are scored, into windows of so many inputs."""
    starts = range(0, len(ids) - 1, window)
    inputs = tuple(tuple(ids[start : min(start + window, len(ids) - 1)]) for start in starts)
    targets = tuple(tuple(ids[start + 1 : start + window + 1]) for start in starts)
    return Windows(tuple(begin), inputs, targets)
