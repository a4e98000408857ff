"""Writes a GGUF file as float32 safetensors, with transformers."""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.engines.gguf_files import GgufModel, read_gguf, write_whole
from orchestrator.engines.inspection import inspect_gguf
from orchestrator.engines.separate import exits_for_a_full_disk
from orchestrator.engines.transformers.gguf_rope import ROPE_TENSORS, NotKept, apply_metadata
from orchestrator.engines.transformers.gguf_split import apply_split
from orchestrator.errors import one_line

#: Why the file's tokenizer is not there, in a line.
NO_TOKENIZER = "no_tokenizer.txt"


def read_once() -> None:
    """Have transformers parse the file and build the map of tensor names once, not again and again.

    It opens a reader for the configuration, the weights and the tokenizer, each of which goes
    through every token of the vocabulary; and it makes the map, which depends on the architecture
    alone, for every module of the model. Both take several times as long as dequantizing does.
    """
    import gguf
    import numpy as np

    opened = cache(lambda path: read_gguf(Path(path)))
    gguf.GGUFReader = lambda path, *more: opened(str(path), *more)
    gguf.get_tensor_name_map = cache(gguf.get_tensor_name_map)
    with suppress(ImportError, AttributeError):  # not every version has a reader of its own
        from transformers.integrations.gguf import reader

        mapped = reader._mapped
        reader._mapped = lambda path: np.asarray(mapped(path))


def run(gguf: Path, directory: Path) -> None:
    """:func:`main` in a process of its own, whose last line of output is shown if it fails."""
    try:
        main(gguf, directory)
    except NotKept as error:
        sys.exit(str(error))


def main(gguf: Path, directory: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` (float32) and the tokenizer to ``directory``.

    Raises
    ------
    InputError
        If the file is damaged.
    NotKept
        If not all of it would be in the model.
    """
    read_once()
    inspect_gguf(gguf)
    model = GgufModel(gguf)
    if len(model.files) == 1:
        _convert(gguf, model, directory)
        return
    # transformers reads one file, and fills with random numbers what is in the others.
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        whole = Path(scratch) / "whole.gguf"
        write_whole(model, whole)
        _convert(whole, model, directory)


def _convert(gguf: Path, source: GgufModel, directory: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    unused = watch_unused()
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    apply_metadata(source, config)
    model, notes = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        config=config,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _refuse_partial(notes, unused)
    model.save_pretrained(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
        apply_split(gguf, source, tokenizer)
    except Exception as error:  # speed needs none; a text that is to be read with it will say so
        (directory / NO_TOKENIZER).write_text(one_line(error), encoding="utf-8")
    else:
        tokenizer.save_pretrained(directory)


def watch_unused() -> set[str]:
    """A set that takes the names of tensors for which transformers finds no place in the model."""
    from transformers import modeling_gguf_pytorch_utils as reading

    unused: set[str] = set()
    kinds = {reading.TensorProcessor, *reading.TENSOR_PROCESSORS.values()}
    for kind in kinds:
        if "process" not in vars(kind):
            continue

        def watched(
            self: Any, weights: Any, name: str, *, made: Any = kind.process, **more: Any
        ) -> Any:
            result = made(self, weights, name, **more)
            # One that a processor has put into a stack of experts by itself has no name any more.
            if result.name is not None and result.name not in more["tensor_key_mapping"]:
                unused.add(name)
            return result

        kind.process = watched
    return unused


def _refuse_partial(notes: Any, unused: set[str]) -> None:
    unused = {*unused, *(notes.get("unexpected_keys") or ())} - set(ROPE_TENSORS)
    mismatched = {str(entry[0]) for entry in notes.get("mismatched_keys") or ()}
    for names, what in (
        (unused, "the model has no place for"),
        (notes.get("missing_keys") or (), "the file lacks"),
        (mismatched, "the file has another shape of"),
    ):
        if names:
            raise NotKept(f"{what} {len(names)} tensors, for example {min(names)}")


if __name__ == "__main__":
    exits_for_a_full_disk(run, Path(sys.argv[1]), Path(sys.argv[2]))
