"""The files a model is streamed from: its own where they suit, else a copy made once in the cache.

A checkpoint is read as it is where its weights have the dtype asked for. Otherwise (another dtype,
4-bit, random weights) a process of its own writes one safetensors file a unit: whoever had just
converted a model would be measured with warm kernels and a fragmented heap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.digest import digest_json
from orchestrator.engines.separate import run_module
from orchestrator.engines.transformers import Prepared
from orchestrator.measure import Identity
from orchestrator.tasks.streaming.layout import TensorPlace, places_in

# Part of the cache key: raise it when the same model would be written otherwise.
STORE_VERSION = 2


@dataclass(frozen=True)
class UnitFiles:
    """Where the tensors of a model are read from.

    Attributes
    ----------
    directory : Path or None
        The copy in the cache; None where the checkpoint itself is read.
    """

    places: dict[str, TensorPlace]
    directory: Path | None


def open_store(prepared: Prepared, identity: Identity) -> UnitFiles:
    """The store of a prepared model, made on first use.

    Raises
    ------
    InputError
        If the weights cannot be read or the disk is full.
    """
    quant = identity["quant"]
    if prepared.directory is not None and quant["scheme"] == "none":
        places = places_in(prepared.files)
        if {place.dtype for place in places.values()} == {quant["dtype"]}:
            return UnitFiles(places, None)
    directory = _directory(prepared, quant)
    request = {
        "architecture": identity["model"]["architecture"],
        "seed": identity["seed"],
        "quant": dict(quant),
        "files": [str(file) for file in prepared.files],
    }
    plain = _directory(prepared, {**quant, "scheme": "none", "double_quant": False})
    if quant["scheme"] != "none" and plain.is_dir():
        # The same weights, rounded already: a random model need not be drawn again.
        request["files"] = [str(file) for file in _units_in(plain)]
    where = str(prepared.directory or "model.architecture")
    publish(directory, lambda path: _write(request, path, where))
    return UnitFiles(places_in(_units_in(directory)), directory)


def _directory(prepared: Prepared, quant: Mapping[str, Any]) -> Path:
    """Where in the cache the copy of a model in this format is, or would be."""
    of = {"version": STORE_VERSION, "weights": prepared.weights_digest, "quant": dict(quant)}
    return cache_root() / "streamed" / digest_json(of)[:32]


def _units_in(directory: Path) -> list[Path]:
    return sorted(directory.glob("unit-*.safetensors"))


def _write(request: dict[str, Any], directory: Path, where: str) -> None:
    directory.mkdir(mode=0o700)
    order = directory / "request.json"
    order.write_text(json.dumps(request))
    run_module(
        "orchestrator.tasks.streaming.write_units",
        order,
        directory,
        failed="the weights cannot be written layer by layer",
        where=where,
        fix="Check that its files belong together",
    )
    order.unlink()
