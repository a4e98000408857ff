"""Digests of what a loader reads of a model: its weights, and everything else beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.engines.digest import digest_files
from orchestrator.engines.source import content_files, directory_problem, find_problem

_WEIGHTS = (".safetensors", ".gguf")
_HUB_TIMEOUT_S = 10.0


def content_of(model: Mapping[str, Any]) -> dict[str, str | None]:
    """Digests by name, of ``identity["model"]``; None for what cannot be found out now.

    Of random weights there is none: the configuration is all they are made from. Costs a stat a
    file where nothing changed.
    """
    source = model["source"]
    if source == "random":
        return {}
    if source == "hub":
        known = model.get("commit")  # found out by the driver, for all nodes
        return {"commit": known or commit_of(str(model.get("id")), model.get("revision"))}
    if find_problem(model):
        # Said when the trial runs, or before; a task that reads no model runs all the same.
        return {"weights": "none"}
    files = content_files(model) or []
    weights = [file for file in files if file.suffix in _WEIGHTS]
    rest = [file for file in files if file.suffix not in _WEIGHTS]
    found: dict[str, str | None] = {"weights": digest_files(weights)}
    if rest:
        found["model files"] = digest_files(rest)
    return found


def text_content(name: str) -> dict[str, str | None]:
    """Digest of a text that quality is measured on, by the name ``task.text`` gives it."""
    if name.startswith("hub:"):
        repository = "/".join(name.removeprefix("hub:").split("/")[:2])
        return {"text": commit_of(repository, None, "dataset")}
    if name in ("auto", "pydoc_topics"):
        from pydoc_data import topics

        return {"text": digest_files([Path(topics.__file__)])}
    return {} if name == "random" else {"text": digest_files([Path(name).expanduser()])}


@lru_cache(maxsize=256)
def commit_of(repository: str, revision: str | None, kind: str = "model") -> str | None:
    """The commit that a revision of a hub repository is now; asked once a process.

    Where the hub does not answer, the cached one, if all of its weights are there. None where
    neither is to be had.
    """
    commit, snapshot = hub_commit(repository, revision, kind)
    incomplete = snapshot is not None and kind == "model" and directory_problem(snapshot)
    return None if incomplete else commit


def hub_commit(
    repository: str, revision: str | None, kind: str = "model"
) -> tuple[str | None, Path | None]:
    """The commit that a revision is now, by the hub; else the cached one, with its snapshot."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if not constants.HF_HUB_OFFLINE:
        try:
            told = HfApi().repo_info(
                repository, revision=revision, repo_type=kind, timeout=_HUB_TIMEOUT_S
            )
            return told.sha, None
        except hub_errors(HFValidationError):
            pass
    found = try_to_load_from_cache(repository, "config.json", revision=revision, repo_type=kind)
    if not isinstance(found, str | os.PathLike):
        return None, None
    snapshot = Path(found).parent
    return snapshot.name, snapshot


def hub_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What the hub's client raises where the hub cannot be reached or answers so, and ``more``.

    Its own error is one of the HTTP library below it, which is another with each generation, and
    one of the system.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, *more)
