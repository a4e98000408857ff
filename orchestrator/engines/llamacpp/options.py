"""Options of ``task=llamacpp`` that stand for a number: layers on the GPU, room of the context."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.engines.text_windows import needed_context
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
        where="task.gpu_layers",
        fix="Give a number, a percentage such as 25%, or all",
    )


def needed_tokens(options: Mapping[str, Any], limit: int | None = None) -> int:
    """The longest sequence that is run: prompt and output, or a window of the text for quality.

    Windows are cut to a model's context, ``limit``; prompt and output are not.
    """
    quality = int(options["quality_tokens"])
    generated = int(options["prompt_tokens"]) + int(options["new_tokens"])
    window = needed_context(quality) if quality else 0
    return max(generated, window if limit is None else min(window, limit))


def context_room(options: Mapping[str, Any]) -> int:
    """Tokens that the context has room for: what was asked for, else what is needed, rounded up."""
    asked = int(options["context_tokens"])
    return asked or math.ceil(needed_tokens(options) / _CONTEXT_STEP) * _CONTEXT_STEP
