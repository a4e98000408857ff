"""A file of prompts: JSON lines with ``prompt`` and, where a line likes, ``new_tokens``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import one_line
from orchestrator.measure import InputError

SUFFIX = ".jsonl"
_KEYS = {"prompt", "new_tokens"}


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes
    ----------
    number : int
        In its file, from 1.
    prompt : str
    new_tokens : int or None
        Output tokens to ask for; None: as many as the task does.
    """

    number: int
    prompt: str
    new_tokens: int | None = None


def read_lines(name: str) -> list[Line]:
    """Every line of a file that is not empty.

    Raises
    ------
    InputError
        It cannot be read, has none, or one that is no request: which, and why.
    """
    where = f"task.prompt={name}"
    found = []
    try:
        with Path(name).expanduser().open(encoding="utf-8-sig") as lines:
            for number, text in enumerate(lines, 1):
                if text.strip():
                    found.append(_line(number, text, where))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {one_line(error)}", where=where) from error
    if not found:
        raise InputError("has no prompt", where=where)
    return found


def _line(number: int, text: str, where: str) -> Line:
    try:
        row = json.loads(text)
        problem = _problem(row)
    except (ValueError, RecursionError) as error:
        problem = one_line(error)
    if problem is not None:
        raise InputError(
            f"line {number} is no request: {problem}",
            where=where,
            fix='Each line is JSON: {"prompt": "a text", "new_tokens": 32}, or without new_tokens',
        )
    return Line(number, row["prompt"], row.get("new_tokens"))


def _problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return "it is no object"
    if unknown := sorted(row.keys() - _KEYS):
        return f"unknown key {unknown[0]}"
    if not isinstance(prompt := row.get("prompt"), str) or not prompt:
        return "it has no text as its prompt"
    prompt.encode()  # Half of a surrogate pair is no text: no tokenizer takes it.
    count = row.get("new_tokens", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        return f"new_tokens={count!r} is no number from 1 on"
    return None
