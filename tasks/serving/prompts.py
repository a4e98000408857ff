"""Token ids of the prompts of a load: random ones, pieces of a text, or the lines of a file. Pure.

Seeded as what is sent and when (:mod:`.stimulus`), by streams of random numbers of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from random import Random

from orchestrator.tasks.serving.prompt_file import Line
from orchestrator.tasks.serving.stimulus import TRACE_BLOCK, Shape


class Prompts:
    """Token ids of prompts.

    Parameters
    ----------
    ids : sequence of int
        What random ones are drawn from; or a text, of which prompts are pieces.
    longest : int or None
        Tokens of the longest piece, where ``ids`` is a text; it is longer than that.
    prefix_share : float
        Share of each prompt that all of them begin with.
    read : callable, optional
        Ids of a line of a file; with begin-of-text, if the second argument says so.
    """

    def __init__(
        self,
        ids: Sequence[int],
        seed: int,
        *,
        longest: int | None,
        prefix_share: float = 0.0,
        read: Callable[[Line, bool], list[int]] | None = None,
    ) -> None:
        self._ids, self._seed = ids, seed
        self._starts = None if longest is None else len(ids) - max(longest, TRACE_BLOCK) + 1
        self._share = prefix_share
        self._read = read
        self._random = Random(f"prompts {seed}")
        self._replies = Random(f"replies {seed}")
        self._prefix: list[int] = []
        self._blocks: dict[int, list[int]] = {}

    def of(self, shape: Shape) -> list[int]:
        """Ids of one prompt, as long as ``shape`` says."""
        if shape.line is not None:
            assert self._read is not None
            return self._read(shape.line, True)
        length = shape.prompt_tokens
        shared = round(self._share * length)
        if len(self._prefix) < shared:
            # From the same numbers whatever was drawn before: the longer one begins as the shorter.
            self._prefix = self._piece(Random(f"prefix {self._seed}"), shared)
        begin = self._prefix[:shared]
        for block in shape.blocks[: -(-length // TRACE_BLOCK)]:
            if block not in self._blocks:
                drawn = Random(f"block {self._seed} {block}")
                self._blocks[block] = self._piece(drawn, TRACE_BLOCK)
            begin += self._blocks[block]
        return [*begin, *self._piece(self._random, max(0, length - len(begin)))][:length]

    def turns(self, shape: Shape) -> Iterator[list[int]]:
        """Ids of the prompt of each turn: all that was before, and more.

        Answers in it are drawn as prompts are, and as long as they were asked for: each engine and
        format reads the same, whatever it has answered itself.
        """
        sent = self.of(shape)
        yield sent
        for before, turn in pairwise(shape.turns):
            if turn.line is None:
                more = self._piece(self._random, turn.prompt_tokens)
            else:
                assert self._read is not None
                more = self._read(turn.line, False)
            sent = [*sent, *self._piece(self._replies, before.new_tokens), *more]
            yield sent

    def _piece(self, random: Random, length: int) -> list[int]:
        if self._starts is None:
            return random.choices(self._ids, k=length)
        start = random.randrange(self._starts)
        return list(self._ids[start : start + length])
