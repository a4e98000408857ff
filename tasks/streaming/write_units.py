"""Writes a model as one safetensors file a unit.

``python -m orchestrator.tasks.streaming.write_units REQUEST DIRECTORY``

A process of its own, started by ``store.py``: it may hold the whole model where that is random.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engines.separate import NO_SPACE
from orchestrator.tasks.streaming.layout import PAGE_BYTES
from orchestrator.tasks.streaming.packed import Packer

if TYPE_CHECKING:
    import torch

_LAYER = re.compile(r"\.layers\.\d+\.")
_UNIT = re.compile(r"^(.*\.layers\.\d+)\.|^(.*)\.[^.]+$")


def write(request: dict[str, Any], directory: Path) -> None:
    """Write every unit of the model that ``request`` names into ``directory``."""
    import torch

    quant = request["quant"]
    dtype = getattr(torch, quant["dtype"])
    packer = None
    if quant["scheme"] != "none":
        packer = Packer(quant["scheme"], double_quant=bool(quant["double_quant"]))
    units: dict[str, list[tuple[str, Any]]] = {}
    for name, read in _tensors(request):
        units.setdefault(_unit_of(name), []).append((name, read))
    for index, unit in enumerate(sorted(units)):
        tensors: dict[str, torch.Tensor] = {}
        for name, read in units[unit]:
            weight = read().to(dtype)
            if packer is not None and weight.dim() == 2 and _LAYER.search(name):
                tensors.update(packer.pack(name, weight))
            else:
                tensors[name] = weight.contiguous()
        _save_on_pages(tensors, directory / f"unit-{index:05d}.safetensors")
    if packer is not None:
        packer.save(directory)


def _save_on_pages(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Save so that the first tensor begins on a page: read past the page cache, none has to move.

    The header is as long as it is, and padded to eight bytes: it is seen only once it is written.
    """
    from safetensors.torch import save_file

    save_file(tensors, file, metadata={"padding": ""})
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
    if spare := -(8 + length) % PAGE_BYTES:
        save_file(tensors, file, metadata={"padding": "." * spare})


def _tensors(request: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names of the model's tensors, each with a function that reads it."""
    if not request["files"]:  # random
        from orchestrator.engines.transformers import random_weights as architecture

        config = architecture.configuration(request["architecture"])
        model = architecture.build(config, request["seed"], request["quant"]["dtype"], "sdpa")
        for name, parameter in model.named_parameters():  # a tied one once
            yield name, (lambda parameter=parameter: parameter.data)
        return
    from safetensors import safe_open

    for file in request["files"]:
        source: Any = safe_open(file, framework="pt")
        for name in source.keys():  # noqa: SIM118 - not a mapping
            yield name, (lambda source=source, name=name: source.get_tensor(name))


def _unit_of(name: str) -> str:
    found = _UNIT.match(name)
    return (found.group(1) or found.group(2)) if found else name


def main() -> None:
    """Do as the command line says; a full disk has an exit status of its own."""
    try:
        write(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
    except Exception as error:
        # safetensors wraps the system's error in one of its own.
        if "No space left" in str(error) or "os error 28" in str(error):
            sys.exit(NO_SPACE)
        raise


if __name__ == "__main__":
    main()
