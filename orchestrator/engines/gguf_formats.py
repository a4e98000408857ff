"""GGUF files: one source in every format, made once into the cache, and what a file holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.digest import digest_files
from orchestrator.engines.gguf_configuration import configuration_of
from orchestrator.engines.gguf_files import GgufModel, gguf_files
from orchestrator.engines.inspection import inspect_gguf
from orchestrator.engines.separate import run_module
from orchestrator.engines.source import find_problem, model_path, packaged_file
from orchestrator.measure import Identity, Infeasible, InputError, Recorder
from orchestrator.measure.wording import format_name

SOURCE = "source"
#: What is written here, as ``quant=`` and as GGUF call it.
WRITTEN = {
    "fp32": "F32",
    "bf16": "BF16",
    "fp16": "F16",
    **{name.lower(): name for name in ("Q8_0", "Q5_1", "Q4_1", "Q4_0", "MXFP4")},
}
# Only of a file that has it.
_READ = {name.lower(): name for name in ("Q6_K", "Q5_K", "Q4_K")}
NAMES = (*WRITTEN, *_READ, SOURCE)
# Part of the cache key: raise it when the same file would come out differently.
_VERSION = 1
_NORMAL_TOKEN = 1
_LAYERS = "blk."
# As far as it names one type: a Q4_K_M is meant to be mostly Q4_K, an IQ3_M mostly some IQ3.
_TYPE_IN_NAME = re.compile(r"(?<![A-Z0-9])(?:I?Q\d(?:_[K01])?|BF16|F16|F32|MXFP4)(?![A-Z0-9])")


def gguf_type(quant: Mapping[str, Any]) -> str | None:
    """What GGUF calls the format of ``identity["quant"]``; None for the file as it is."""
    name = format_name(quant)
    return None if name == SOURCE else {**WRITTEN, **_READ}[name]


@dataclass(frozen=True)
class Prepared:
    """The file of a trial, in the format asked for.

    Attributes
    ----------
    digest : str
        Of the source's content.
    asked : str or None
        What GGUF calls the format; None for the file as it is.
    """

    source: Path
    file: Path
    contents: Contents
    digest: str
    asked: str | None

    @property
    def made(self) -> bool:
        """Whether the file was written here."""
        return self.file != self.source


def prepare(identity: Identity, recorder: Recorder) -> Prepared:
    """Find the file of ``identity["model"]``, write it in another format if need be, record both.

    Raises
    ------
    InputError, Infeasible
        As :func:`in_format` and :func:`contents`.
    """
    if problem := find_problem(identity["model"]):
        raise problem.as_input_error()
    packaged = packaged_file() if identity["model"]["source"] == "packaged" else None
    source = packaged or model_path(identity["model"])
    digest = digest_files(gguf_files(source))
    asked = gguf_type(identity["quant"])
    file = in_format(source, digest, asked, recorder)
    found = contents(file)
    recorder.fact("weights_digest", digest)
    recorder.fact("gguf", {"architecture": found.architecture, "tensors": found.types})
    if asked is None:
        recorder.fact("gguf_layers", found.words(source.name))
    else:
        recorder.engaged("format", asked, found.matrix_type)
    return Prepared(source, file, found, digest, asked)


def check_source(identity: Identity, engine: str) -> str | None:
    """One line why an engine that runs GGUF files cannot run this model; :class:`ConfigError`."""
    if identity["model"]["source"] not in ("packaged", "gguf"):
        return (
            f"{engine} runs GGUF files, not a {identity['model']['source']} model: "
            "use model=gguf model.path=FILE.gguf"
        )
    if problem := find_problem(identity["model"]):
        raise problem.as_config_error()
    return None


def in_format(
    source: Path, digest: str, name: str | None, recorder: Recorder | None = None
) -> Path:
    """``source`` with most of its matrices in the GGUF type ``name``, made on first use.

    ``source`` itself for None, and where it is of that type. With a ``recorder`` in a phase
    ``convert``.

    Raises
    ------
    InputError
        If the file is damaged, of a type that cannot be dequantized, or the disk is full.
    Infeasible
        If it is of another type, and that one is not written here.
    """
    if name is None:
        inspect_gguf(source)
        return source
    final = cache_root() / "formats" / f"{digest[:32]}-{name}-v{_VERSION}.gguf"
    if not final.exists():
        inspect_gguf(source)
        if (found := contents(source).matrix_type) == name:
            return source
        if name not in WRITTEN.values():
            raise Infeasible(
                f"most of this file is {found}, and {name} is not written here",
                where="quant",
                fix="Use quant=source, or a file in that format",
            )
    # A process of its own: gigabytes of float32 would leave this one's heap and caches unlike those
    # of the next attempt, which finds the file made.

    def build(target: Path) -> None:
        run_module(
            "orchestrator.engines.gguf_requantize",
            source,
            target,
            name,
            failed=f"this GGUF file cannot be written as {name}",
            where=str(source),
            fix="Use quant=source, or a file in another format",
        )

    making = recorder.phase("convert", measured=False) if recorder else None
    return publish(final, build, making=making)


@dataclass(frozen=True)
class Contents:
    """What a GGUF file holds.

    Attributes
    ----------
    layers : int
        Blocks, without the output layer.
    context_tokens : int or None
        Longest sequence it was made for.
    vocabulary : int
    ordinary_ids : tuple of int
        Tokens that are text: no control, unknown or byte tokens.
    start_id : int or None
        As :attr:`orchestrator.engines.port.Tokenizer.start_id`.
    weights_bytes, parameters : int
        Of all tensors as they lie in the file.
    matrix_elements : dict of str to int
        Elements of the layers' matrices by type, most first. Embeddings and output head are finer
        in many files, and half of a small model.
    types : dict of str to int
        Tensors by type.
    config : dict or None
        Its sizes as a Hugging Face configuration; None for a family that is not known here.
    """

    architecture: str
    layers: int
    context_tokens: int | None
    vocabulary: int
    ordinary_ids: tuple[int, ...]
    start_id: int | None
    end_ids: tuple[int, ...]
    weights_bytes: int
    parameters: int
    matrix_elements: dict[str, int]
    types: dict[str, int]
    config: dict[str, Any] | None

    @property
    def matrix_type(self) -> str:
        """Type of most of the layers' matrices."""
        return next(iter(self.matrix_elements), "F32")

    def words(self, name: str) -> str:
        """What a file called ``name`` holds: ``layers mostly Q5_0, not Q4_K as it is called``."""
        found = self.matrix_type
        held = f"layers {'mostly' if len(self.matrix_elements) > 1 else 'in'} {found}"
        said = _TYPE_IN_NAME.search(name.upper())
        wrong = said is not None and not found.startswith(said[0])
        return f"{held}, not {said[0]} as it is called" if wrong and said else held


@lru_cache(maxsize=4)
def contents(file: Path) -> Contents:
    """What a model of one file or several holds.

    Raises
    ------
    InputError
        Where it lacks what a language model needs.
    """
    reader = GgufModel(file)
    try:
        architecture = str(reader.fields["general.architecture"].contents())
        layers = int(reader.fields[f"{architecture}.block_count"].contents())
        vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    except KeyError as error:
        raise InputError(
            f"no language model: the file has no {error.args[0]}", where=str(file)
        ) from error
    context = reader.fields.get(f"{architecture}.context_length")
    kinds = reader.fields.get("tokenizer.ggml.token_type")
    ids = (
        range(vocabulary)
        if kinds is None
        else [i for i, kind in enumerate(kinds.contents()) if kind == _NORMAL_TOKEN]
    )
    special = {n: reader.value(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos", "eot")}
    known = {name: int(token) for name, token in special.items() if token is not None}
    matrices: Counter[str] = Counter()
    in_layers = any(tensor.name.startswith(_LAYERS) for tensor in reader.tensors)
    for tensor in reader.tensors:
        if len(tensor.shape) > 1 and (tensor.name.startswith(_LAYERS) or not in_layers):
            matrices[tensor.tensor_type.name] += int(tensor.n_elements)
    return Contents(
        architecture=architecture,
        layers=layers,
        context_tokens=None if context is None else int(context.contents()),
        vocabulary=vocabulary,
        ordinary_ids=tuple(ids),
        start_id=known.get("bos", known.get("eos")),
        end_ids=tuple(known[name] for name in ("eos", "eot") if name in known),
        weights_bytes=sum(int(t.n_bytes) for t in reader.tensors),
        parameters=sum(int(t.n_elements) for t in reader.tensors),
        matrix_elements=dict(matrices.most_common()),
        types=dict(Counter(t.tensor_type.name for t in reader.tensors)),
        config=configuration_of(reader),
    )
