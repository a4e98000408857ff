"""Weights files, from outside: what they hold, and whether they are whole.

Damage is looked for before a library turns it into a riddle.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.engines.gguf_files import check_parts, gguf_files, read_gguf
from orchestrator.measure import InputError

_GGUF_MAGIC = b"GGUF"
_INTEGER = re.compile(r"[IU]\d+|BOOL")


def inspect_safetensors(file: Path) -> None:
    """Check a safetensors file's header and that its tensors fill the file exactly.

    The format: 8 bytes little-endian header length, a JSON header with each tensor's
    ``data_offsets`` into what follows, then the data.

    Raises
    ------
    InputError
        Naming the file and what is wrong with it.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length == 0 or length > size - 8:
            raise _corrupt(file, "safetensors", "its header does not fit into it")
        try:
            header = json.loads(stream.read(length))
            ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
            raise _corrupt(file, "safetensors", "its header cannot be read") from error
    if not ends:
        raise _corrupt(file, "safetensors", "there is no tensor in it")
    if size != expected:
        raise _corrupt(file, "safetensors", f"{size} bytes where its header says {expected}")


def tensor_types(file: Path) -> dict[str, str]:
    """Names of the tensors in a file that :func:`inspect_safetensors` found whole: ``BF16``, …"""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return {name: str(t["dtype"]) for name, t in header.items() if name != "__metadata__"}


def inspect_shards(files: Iterable[Path], *, packed: bool) -> None:
    """Check safetensors files by themselves, and that together they say one thing of each tensor.

    A loader takes a tensor of two files from the later one, whatever an index says, and integers
    for numbers like any other.

    Parameters
    ----------
    packed : bool
        The configuration says that weights are quantized: integers are meant.

    Raises
    ------
    InputError
        Naming the file and what is wrong with it.
    """
    seen: dict[str, Path] = {}
    for file in files:
        inspect_safetensors(file)
        for name, kind in tensor_types(file).items():
            if name in seen:
                raise InputError(
                    f"the tensor {name} is in {seen[name].name} too",
                    where=str(file),
                    fix="Save the model again: its files are of two models",
                )
            seen[name] = file
            if not packed and name.endswith(".weight") and _INTEGER.fullmatch(kind):
                raise InputError(
                    f"{name} is of integers ({kind}), and config.json has no quantization_config",
                    where=str(file),
                    fix="Give weights that are numbers, or the configuration they were saved with",
                )


def inspect_gguf(file: Path) -> None:
    """Check that a GGUF model's metadata can be read and its tensors lie within its files.

    Raises
    ------
    InputError
        Naming the file and what is wrong with it.
    """
    files = gguf_files(file)
    tensors = 0
    fields: dict[str, Any] = {}
    for each in files:
        with each.open("rb") as stream:
            if stream.read(4) != _GGUF_MAGIC:
                raise _corrupt(each, "GGUF", "it does not begin with GGUF")
        try:
            reader = read_gguf(each)
        except Exception as error:  # as many kinds as there are ways to be damaged
            raise _corrupt(each, "GGUF", "it ends early or its metadata is damaged") from error
        fields = fields or dict(reader.fields)
        tensors += len(reader.tensors)
        ends = (int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors)
        end = max(ends, default=0)
        if end > each.stat().st_size:
            raise _corrupt(each, "GGUF", f"its tensors need {end} bytes")
    if not tensors:
        raise _corrupt(file, "GGUF", "there is no tensor in it")
    check_parts(files, fields, tensors)


def _corrupt(file: Path, kind: str, why: str) -> InputError:
    return InputError(
        f"corrupt or truncated {kind} file: {why}", where=str(file), fix="Fetch the file again"
    )
