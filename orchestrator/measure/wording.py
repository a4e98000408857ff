"""Counts, sizes and configuration values as messages write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def counted(number: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def gib(size_bytes: float, digits: int = 1) -> str:
    """``7.5 GiB``, with ``digits`` decimals."""
    return f"{size_bytes / 2**30:.{digits}f} GiB"


def plain(value: object) -> str:
    """A configuration value as YAML would show it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


_PLAIN_FORMATS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def format_name(quant: Mapping[str, Any]) -> str:
    """What ``quant=`` calls the format of ``identity["quant"]``: ``bf16``, ``nf4``, ``q8_0``."""
    scheme = str(quant.get("scheme") or "none")
    dtype = str(quant.get("dtype") or "")
    return _PLAIN_FORMATS.get(dtype, dtype) if scheme == "none" else scheme
