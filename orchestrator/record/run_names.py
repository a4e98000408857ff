"""Short names for people: an attempt's run name, and what it is of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from orchestrator.measure.wording import plain

MAX_LABEL_CHARS = 200


def trial_label(
    axes: Mapping[str, Any],
    number: int,
    identity: Mapping[str, Any] | None = None,
    label: str | None = None,
) -> str:
    """A run name such as ``nf4 · 512→128 · a1``.

    Words stand for themselves, numbers and switches carry the last part of their override
    (``batch_size=4``); prompt and output lengths are joined by an arrow.

    Parameters
    ----------
    axes : mapping
        Override to value, as the trial's sweep varies them.
    number : int
        The attempt's number, from 1.
    identity : mapping, optional
        The trial's configuration: names the trial where no axis does, and gives the output length
        where only the prompt length varies.
    label : str, optional
        A name for the trial that somebody chose already.
    """
    if label:
        return _cut(label, f" · a{number}")
    task = dict((identity or {}).get("task") or {})
    parts: list[str] = []
    for override, value in axes.items():
        leaf = override.rpartition(".")[2].lstrip("+")
        if leaf == "new_tokens" and "task.prompt_tokens" in axes:
            continue
        if leaf == "prompt_tokens":
            new = axes.get("task.new_tokens", task.get("new_tokens"))
            parts.append(f"{value}→{new}" if new is not None else str(value))
        elif isinstance(value, str):
            parts.append(PurePath(value).name or value)
        else:
            parts.append(f"{leaf}={plain(value)}")
    if not parts:
        parts = [str(task["name"])] if "name" in task else ["trial"]
    return _cut(" · ".join(parts), f" · a{number}")


def model_label(identity: Mapping[str, Any]) -> str:
    """The model's id, or the last part of its path, or how it was made."""
    model = identity.get("model") or {}
    if model.get("id"):
        return str(model["id"])
    if model.get("path"):
        return PurePath(str(model["path"])).name
    kind = (model.get("architecture") or {}).get("model_type")
    return f"{model.get('source', 'unknown')} {kind}" if kind else str(model.get("source", ""))


def _cut(head: str, tail: str) -> str:
    room = MAX_LABEL_CHARS - len(tail)
    return (head if len(head) <= room else head[: room - 1] + "…") + tail
