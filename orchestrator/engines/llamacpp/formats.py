"""GGUF files: one source in every format, made once into the cache, and what a file holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.gguf_files import GgufModel
from orchestrator.engines.inspection import inspect_gguf
from orchestrator.engines.llamacpp.gguf_configuration import configuration_of
from orchestrator.engines.separate import run_module
from orchestrator.measure import InputError, Recorder

SOURCE = "source"
REFERENCE = "BF16"
FORMATS = ("BF16", "Q8_0", "Q5_1", "Q4_0", "Q4_1", "MXFP4")
# Part of the cache key: raise it when the same file would come out differently.
_VERSION = 1
_NORMAL_TOKEN = 1


def in_format(source: Path, digest: str, name: str, recorder: Recorder | None = None) -> Path:
    """``source`` itself for ``source``, else its weights in the format ``name``, made on first use.

    With a ``recorder`` in a phase ``convert``.

    Raises
    ------
    InputError
        If the file is damaged, of a type that cannot be dequantized, or the disk is full.
    """
    inspect_gguf(source)
    if name == SOURCE:
        return source
    # A process of its own: gigabytes of float32 would leave this one's heap and caches unlike those
    # of the next attempt, which finds the file made.
    final = cache_root() / "formats" / f"{digest[:32]}-{name}-v{_VERSION}.gguf"

    def build(target: Path) -> None:
        run_module(
            "orchestrator.engines.llamacpp.requantize",
            source,
            target,
            name,
            failed=f"this GGUF file cannot be written as {name}",
            where=str(source),
            fix="Use task.format=source, or a file in another format",
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
    weights_bytes, parameters : int
        Of all tensors as they lie in the file.
    matrix_type : str
        Type of most matrices, by number of elements.
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
    weights_bytes: int
    parameters: int
    matrix_type: str
    types: dict[str, int]
    config: dict[str, Any] | None


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
    matrices: Counter[str] = Counter()
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:
            matrices[tensor.tensor_type.name] += int(tensor.n_elements)
    return Contents(
        architecture=architecture,
        layers=layers,
        context_tokens=None if context is None else int(context.contents()),
        vocabulary=vocabulary,
        ordinary_ids=tuple(ids),
        weights_bytes=sum(int(t.n_bytes) for t in reader.tensors),
        parameters=sum(int(t.n_elements) for t in reader.tensors),
        matrix_type=matrices.most_common(1)[0][0] if matrices else "F32",
        types=dict(Counter(t.tensor_type.name for t in reader.tensors)),
        config=configuration_of(reader),
    )
