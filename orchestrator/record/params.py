"""An identity as MLflow parameters: flat, complete, nothing cut without saying so."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.measure.wording import plain

# MLflow's own limits; it cuts longer parameter values without a word.
MAX_PARAM_CHARS = 6_000
MAX_TAG_CHARS = 8_000
MAX_KEY_CHARS = 250


def flatten(identity: Mapping[str, Any]) -> dict[str, str]:
    """``{"task": {"prompt_tokens": 512}}`` as ``{"task.prompt_tokens": "512"}``.

    Lists are JSON. A value longer than MLflow keeps is given as its SHA-256 and its length; the
    whole of it is in ``config.yaml``.
    """
    return {legal_key(key): _bounded(value) for key, value in _leaves("", identity)}


def _leaves(prefix: str, node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(path, value)
        elif isinstance(value, (Mapping, list, tuple)):
            yield path, json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
        else:
            yield path, plain(value)


def _bounded(value: str) -> str:
    if len(value) <= MAX_PARAM_CHARS:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()
    return f"sha256:{digest} ({len(value)} characters, whole in config.yaml)"


def legal_key(key: str) -> str:
    """``key`` with what MLflow refuses in a name replaced; distinct keys stay distinct."""
    legal = re.sub(r"[^\w.\- :/]", "_", key)
    if posixpath.normpath(legal) != legal or legal == "." or legal.startswith(("/", "..")):
        legal = legal.replace("/", "_").strip(".") or "_"
    if legal != key or len(legal) > MAX_KEY_CHARS:
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        legal = f"{legal[: MAX_KEY_CHARS - 9]}_{digest}"
    return legal


def tag_value(value: object, limit: int = MAX_TAG_CHARS) -> str:
    """A tag's value; one that is too long says that it was cut and where the whole is."""
    # The name of a file that is no UTF-8 gets into messages as what no store takes.
    text = plain(value).encode("utf-8", "replace").decode()
    note = " … (whole in report.json)"
    return text if len(text) <= limit else text[: limit - len(note)] + note
