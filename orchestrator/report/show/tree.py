"""Writes nested provenance and configuration on one line, the telling parts first. Pure text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from orchestrator.report.analyse.reasons import one_line

# A provenance lists every installed package; these decide what a number is.
_TELLING = (
    *("torch", "transformers", "bitsandbytes", "xllamacpp", "accelerate", "numpy", "ray", "mlflow"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
)
_MOST = 14


def entry(value: Any, key: str) -> str:
    """:func:`flat` of what ``key`` names; of a command, what a shell takes."""
    is_command = key == "command" and isinstance(value, (list, tuple))
    return shlex.join(map(str, value)) if is_command else "" if value is None else flat(value)


def flat(value: Any) -> str:
    """``model=EPYC  cores=2``; of a long mapping what tells most, and how many more there are."""
    if isinstance(value, Mapping):
        pairs = {str(k): v for k, v in value.items() if v not in (None, "", [], {})}
        shown = pairs
        if len(pairs) > _MOST:
            shown = {k: pairs[k] for k in _TELLING if k in pairs} or dict(
                list(pairs.items())[:_MOST]
            )
        parts = [
            f"{k}={{{flat(v)}}}" if isinstance(v, Mapping) else f"{k}={flat(v)}"
            for k, v in shown.items()
        ]
        if len(shown) < len(pairs):
            parts.append(f"and {len(pairs) - len(shown)} more")
        return "  ".join(parts)
    if isinstance(value, (list, tuple)):
        return ", ".join(flat(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return one_line(str(value))
