"""Options of ``engine=llamacpp`` that stand for a number: layers on the GPU, room for tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.engines.port import Work
from orchestrator.measure import ConfigError

_ALL = "all"
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")
_CONTEXT_STEP = 256


def gpu_layers(asked: str, layers: int) -> int:
    """Layers for the GPU out of ``layers``: a number, a percentage (rounded up), or ``all``.

    Raises
    ------
    ConfigError
        For anything else.
    """
    if asked == _ALL:
        return layers
    if asked.isdecimal():
        return min(int(asked), layers)
    found = _PERCENT.fullmatch(asked)
    if found and float(found[1]) <= 100.0:
        return math.ceil(layers * float(found[1]) / 100.0)
    raise ConfigError(
        f"{asked!r} is no number of layers",
        where="engine.gpu_layers",
        fix="Give a number, a percentage such as 25%, or all",
    )


def room_tokens(asked: int, work: Work) -> int:
    """Tokens that the context has room for: what was asked for, else what is needed, rounded up."""
    return asked or _rounded(work.room_tokens())


def context_problem(options: Mapping[str, Any]) -> str | None:
    """Why llama.cpp would take another number than this without a word; None where it does not."""
    room = options["context_tokens"]
    if room != _rounded(room):
        return (
            f"llama.cpp has room for a multiple of {_CONTEXT_STEP} tokens: "
            f"use engine.context_tokens={_rounded(room)}"
        )
    return None


def _rounded(tokens: int) -> int:
    return math.ceil(tokens / _CONTEXT_STEP) * _CONTEXT_STEP
