"""Proofs of behaviour of an engine that shows the likeliest next tokens of a prompt only.

::

    whole    0 1 2 ... n      computed at once
    cached   0 1 2 ... | n    the same, the last token decoded on what the others left in the cache
    alone    n                a negative control: without its context

A depth is proven likewise, with all of the prompt for ``n``, or as much of it as is long enough::

    whole    depth, prompt    computed at once
    cached   depth | prompt   as it was timed
    alone    prompt           a negative control: without the depth

llama.cpp loads no file whose tensors it does not all use: that needs no proof here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrator.engines.proof import CACHE_SHARE, FAILED, PROVEN, UNDECIDED, Finding, judge_cache
from orchestrator.measure import Recorder

if TYPE_CHECKING:
    from orchestrator.engines.next_tokens import NextTokens

# Products of eight-bit integers, keys and values in sixteen bits or fewer.
_ROUNDING = 3e-2
_TOKENS = 16
_TOP = 256
_LEAST_COMMON = 8


def prove(
    server: NextTokens,
    prompt: Sequence[int],
    vocabulary: int,
    recorder: Recorder,
    depth: int = 0,
    fill: Callable[[Sequence[Sequence[int]], int], None] | None = None,
) -> None:
    """Record what is found; :class:`Mismatch` for a proof that fails.

    ``fill`` has the first ``depth`` ids of a prompt in the server's cache, and no more of it.
    """
    fed = list(prompt[:_TOKENS])
    count = min(_TOP, vocabulary)
    whole = dict(server.next_logprobs(fed, count, cached=False))
    findings = {"finite log-probabilities": (_finite(whole), "numbers that add up to 1 at most")}
    if len(fed) > 1:
        server.next_logprobs(fed[:-1], 1, cached=False)
        cached = dict(server.next_logprobs(fed, count))
        alone = dict(server.next_logprobs(fed[-1:], count, cached=False))
        asked = f"error up to {CACHE_SHARE:g} of that without context"
        findings["cache"] = (judge(whole, cached, alone, len(fed)), asked)
    if depth and fill is not None:
        fed = list(prompt[: depth + _TOKENS])
        whole = dict(server.next_logprobs(fed, count, cached=False))
        alone = dict(server.next_logprobs(fed[depth:], count, cached=False))
        # Over hundreds of tokens rounding adds up: this is as much, whatever the depth.
        server.next_logprobs(fed[:-1], 1, cached=False)
        rounded = _distance(whole, dict(server.next_logprobs(fed, count))) / (_spread(whole) or 1.0)
        fill([fed], depth)
        cached = dict(server.next_logprobs(fed, count))
        asked = f"error up to {CACHE_SHARE:g} of that without the depth"
        found = judge(whole, cached, alone, len(fed), max(rounded, _ROUNDING))
        findings["depth"] = (found, asked)
    recorder.fact("proofs", {name: found.state for name, (found, _) in findings.items()})
    for name, (found, asked) in findings.items():
        found.record(recorder, name, asked)


def judge(
    whole: dict[int, float],
    cached: dict[int, float],
    alone: dict[int, float],
    tokens: int,
    rounding: float = _ROUNDING,
) -> Finding:
    """Of the log-probabilities of the likeliest tokens, by token."""
    if not all(map(math.isfinite, cached.values())):
        return Finding(FAILED, "NaN or infinity")
    if len(whole.keys() & cached.keys() & alone.keys()) < min(_LEAST_COMMON, len(whole)):
        # The likeliest tokens without context are others: it is enough that those with it are not.
        control = _spread(whole)
        from_control = control
    else:
        control, from_control = _distance(whole, alone), _distance(cached, alone)
    if len(whole.keys() & cached.keys()) < min(_LEAST_COMMON, len(whole)):
        return Finding(FAILED, "other tokens are likely than without a cache")
    return judge_cache(
        _distance(whole, cached), control, from_control, _spread(whole), rounding, tokens=tokens
    )


def _finite(found: dict[int, float]) -> Finding:
    values = list(found.values())
    if not values:
        return Finding(UNDECIDED, "it gave none")
    total = math.fsum(map(math.exp, values)) if all(map(math.isfinite, values)) else math.nan
    good = total <= 1.0 + 1e-3
    return Finding(PROVEN if good else FAILED, f"{len(values)} add up to {total:.4f}")


def _distance(one: dict[int, float], two: dict[int, float]) -> float:
    common = one.keys() & two.keys()
    return math.sqrt(math.fsum((one[i] - two[i]) ** 2 for i in common) / max(len(common), 1))


def _spread(found: dict[int, float]) -> float:
    mean = math.fsum(found.values()) / len(found)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in found.values()) / len(found))
