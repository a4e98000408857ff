"""Proof that tokens made together, or from a draft, are those of the plain model on its own.

Greedy decoding chooses the likeliest token, and kernels for several tokens add up in another order
than the one for a single token. So another token may be chosen where the two likeliest are nearer
to each other than the kernels' own results::

    got      a b c d e ...    as it was timed
    plain    a b x            the model by itself: at c the two differ
    there    |log p(c) - log p(x)|  against  what log-probabilities scatter there, computed at once
             and token by token
    plain          d e ...    goes on after c, where that explains it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.engines.proof import FAILED, PROVEN, Finding

if TYPE_CHECKING:
    from orchestrator.engines.llamacpp.server import LlamaServer

_TOP = 16


def judge_tokens(
    server: LlamaServer, prompt: Sequence[Sequence[int]], got: Sequence[Sequence[int]]
) -> Finding:
    """Whether ``got`` is what ``server`` makes of each row of ``prompt`` by itself."""
    total = sum(map(len, got))
    ties: list[tuple[float, float]] = []
    for row, tokens in zip(prompt, got, strict=True):
        known = 0
        while known < len(tokens):
            before = [*row, *tokens[:known]]
            (plain,) = server.tokens([before], len(tokens) - known)
            same = _common(plain, tokens[known:])
            known += same
            if known == len(tokens):
                break
            gap, scatter = _nearness(server, [*before, *plain[:same]], tokens[known], plain[same])
            if gap > scatter:
                why = f"{gap:.2g} less likely than {plain[same]}, and results scatter by"
                return Finding(FAILED, f"token {known} is {tokens[known]}, {why} {scatter:.2g}")
            ties.append((gap, scatter))
            known += 1
    if not ties:
        return Finding(PROVEN, f"all {total} the same")
    gap, scatter = max(ties)
    return Finding(
        PROVEN,
        f"{total - len(ties)} of {total} the same; at the others the two likeliest are up to "
        f"{gap:.2g} nats apart, and results scatter by {scatter:.2g}",
    )


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b), len(one))


def _nearness(server: LlamaServer, ids: list[int], got: int, plain: int) -> tuple[float, float]:
    """How far apart the two tokens are after ``ids``, and how far two computations of that are."""
    whole = dict(server.next_logprobs(ids, _TOP, cached=False))
    server.next_logprobs(ids[:-1], 1, cached=False)
    step = dict(server.next_logprobs(ids, _TOP))
    common = whole.keys() & step.keys()
    if not {got, plain} <= common:
        return float("inf"), 0.0
    # Each of the two may be off by as much.
    scatter = 2 * max(abs(whole[i] - step[i]) for i in common)
    return abs(step[got] - step[plain]), scatter
