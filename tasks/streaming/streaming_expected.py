"""What arithmetic expects of streaming: bytes from the disk, memory, the time of a step.

::

    async   max(bytes / bandwidth of the disk and of the bus, computing)
    sync    bytes / bandwidth + computing

The bandwidths are those that the attempt itself measured: without one there is no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.engines.transformers.configuration import known_config
from orchestrator.engines.transformers.expected import expect_inference
from orchestrator.measure import Identity

if TYPE_CHECKING:
    from orchestrator.model import (
        Architecture,
        Expectation,
        Steps,
        WeightFormat,
    )

# What a packed matrix has in memory and not on disk, for it is the same in each: the numbers that
# four bits stand for; those of its scales, and their mean.
_CODE_BYTES = 16 * 4
_SCALE_CODE_BYTES = 256 * 4 + 4


def expect_streaming(identity: Identity, config: Mapping[str, Any] | None) -> Expectation | None:
    """Sizes and times of ``task=streaming``; as for inference.

    ``disk_bytes`` are read by each forward; ``peak_memory_bytes`` are what stays resident, the
    slots, the cache and a prefill's activations.
    """
    from orchestrator.model import Transfer, WeightFormat, read_architecture

    found = config if config is not None else known_config(identity["model"])
    if found is None:
        return None
    options, quant = identity["task"], identity["quant"]
    dense_quant = {"scheme": "none", "dtype": quant["dtype"], "double_quant": False}
    # Four bits become a dense layer before each product: computing is that of dense weights.
    run_as = {"attention": options["attention"], "compile": False}
    dense = expect_inference({**identity, "quant": dense_quant, "engine": run_as}, found)
    if dense is None:
        return None
    architecture = read_architecture(found, strict=False)
    packed = WeightFormat.from_quant(quant)
    parts = _parts_bytes(architecture, packed)
    resident = [kind for kind in ("embedding", "norm", "head") if options[f"resident_{kind}"]]
    read = sum(size for kind, size in parts.items() if kind not in resident)
    layers = sum(count for _, count in architecture.layers)
    streamed = [size for kind, size in parts.items() if kind not in (*resident, "layers")]
    largest = max(parts["layers"] // layers, *streamed, 0)
    slots = 1 if options["transfer"] == "sync" else options["depth"] + 1
    held = sum(parts[kind] for kind in resident)
    if architecture.tied and {"embedding", "head"} <= set(resident):
        held -= parts["head"]  # one memory for both
    floor = held + slots * largest + dense.sizes_bytes["kv_bytes"]
    if packed.scheme != "none":
        floor += _dense_layer_bytes(architecture, quant["dtype"])
    total = floor + dense.sizes_bytes["activation_bytes"]
    transfers = [Transfer("disk_bandwidth_bytes_per_s", read)]
    if identity["device"]["kind"] == "cuda":
        transfers.append(Transfer("h2d_bandwidth_bytes_per_s", read))

    def steps() -> dict[str, Steps]:
        return {
            name: replace(
                step,
                eager=(*step.eager, *_unpacking(architecture, packed)),
                transfers=tuple(transfers),
                overlapped=options["transfer"] == "async",
            )
            for name, step in dense.made_steps().items()
        }

    sizes = {
        "weights_bytes": sum(parts.values()) - (parts["head"] if architecture.tied else 0),
        "disk_bytes": read,
        "peak_memory_bytes": total,
        "kv_bytes": dense.sizes_bytes["kv_bytes"],
        "activation_bytes": dense.sizes_bytes["activation_bytes"],
    }
    return replace(dense, sizes_bytes=sizes, memory_bytes=total, steps=steps, floor_bytes=floor)


def _parts_bytes(architecture: Architecture, weights: WeightFormat) -> dict[str, int]:
    """Bytes on disk of the embedding, all layers, the last norm, and the head that is read."""
    from orchestrator.model import weights_bytes
    from orchestrator.model.weights import (
        embedding_bytes,
        head_bytes,
        is_quantized,
    )

    embedding = embedding_bytes(architecture, weights)
    head = head_bytes(architecture, weights)
    norm = architecture.vectors * weights.dense_bytes
    outer = embedding + norm + (0 if architecture.tied else head)
    outer += architecture.float32_buffers * 4  # made anew, never stored
    layers = weights_bytes(architecture, weights) - outer
    packed = sum(
        count * matrix.count
        for layer, count in architecture.layers
        for matrix in layer.matrices
        if is_quantized(matrix, weights)
    )
    layers -= packed * (_CODE_BYTES + (_SCALE_CODE_BYTES if weights.double_quant else 0))
    return {"embedding": embedding, "layers": layers, "norm": norm, "head": head}


def _dense_layer_bytes(architecture: Architecture, dtype: str) -> int:
    from orchestrator.model import WeightFormat

    layers = _parts_bytes(architecture, WeightFormat("none", dtype))["layers"]
    return layers // sum(count for _, count in architecture.layers)


def _unpacking(architecture: Architecture, weights: WeightFormat) -> tuple[Any, ...]:
    """Reading every layer's packed weights and writing dense ones; nothing for dense weights."""
    from orchestrator.model import Operation
    from orchestrator.model.architecture import DEQUANTIZE

    if weights.scheme == "none":
        return ()
    count = sum(count for _, count in architecture.layers)
    packed = _parts_bytes(architecture, weights)["layers"] / count
    dense = _dense_layer_bytes(architecture, weights.dtype)
    return (Operation(DEQUANTIZE, 0.0, packed + dense, count=count, working_bytes=packed + dense),)
