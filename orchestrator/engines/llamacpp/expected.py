"""What arithmetic expects of llama.cpp on one model: bytes of the file's types, time at the bound.

Unlike transformers it grows its cache in place and fuses what it can, and its kernels cost no
launch from Python: the ideal operations are what it is held against. Formats below sixteen bits
multiply blocks of eight-bit integers, so their bound is the device's products in int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.engines import gguf_formats as formats
from orchestrator.engines import gguf_requantize as requantize
from orchestrator.engines.llamacpp.options import gpu_layers, room_tokens
from orchestrator.engines.port import Work
from orchestrator.engines.transformers.configuration import known_config
from orchestrator.measure import Identity

if TYPE_CHECKING:
    from orchestrator.model import Architecture, Expectation
    from orchestrator.model.operations import Operation

# What the packaged file's matrices are in; of any other file the measured process tells it.
_PACKAGED_TYPE = "Q4_1"
_COMPUTED_IN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PACKED_PRODUCT = "int8"
GGUF_TYPE = "gguf_type"
GGUF_MADE = "gguf_made"


def expect_llamacpp(identity: Identity, config: Mapping[str, Any] | None) -> Expectation | None:
    """Sizes, time to the first token and time per token of a generation.

    Parameters
    ----------
    config : mapping or None
        As the measured process read it from the file, with the type of most of its matrices under
        ``gguf_type`` and whether it was made here under ``gguf_made``; None: as far as it can be
        had without reading the file.

    Returns
    -------
    Expectation or None
        None where the configuration or the type is not at hand. No times where layers are split
        between CPU and GPU.

    Raises
    ------
    ConfigError
        If the arithmetic does not know the model or the type.
    """
    from orchestrator.model import (
        CacheFormat,
        Expectation,
        Steps,
        WeightFormat,
        decode,
        kv_bytes,
        memory,
        prefill,
        read_architecture,
    )

    options, engine = identity["task"], identity["engine"]
    found = dict(config) if config is not None else dict(known_config(identity["model"]) or {})
    kind = found.pop(GGUF_TYPE, None)
    asked = formats.gguf_type(identity["quant"])
    own = _PACKAGED_TYPE if identity["model"]["source"] == "packaged" else None
    made = found.pop(GGUF_MADE, asked not in (None, own))
    kind = kind or asked or own
    if not found or kind is None:
        return None
    architecture = read_architecture(found, strict=False)
    weights = WeightFormat(kind, dtype=_COMPUTED_IN.get(kind, "float32"))
    batch, depth = options.get("batch_size", 1), options.get("depth", 0)
    prompt, new = options["prompt_tokens"], options["new_tokens"]
    # The cache is made for the whole context at once.
    room = room_tokens(
        engine["context_tokens"],
        Work(tokens=depth + prompt + new, scored_tokens=options.get("quality_tokens", 0)),
    )
    keys, values = (CacheFormat(engine[f"cache_type_{side}"].upper()) for side in ("k", "v"))
    # Keys and values are alike in number, so each of the two formats holds half of the cache.
    held = (
        sum(kv_bytes(architecture, room, batch=batch, cache=side) for side in (keys, values)) // 2
    )
    whole = memory(
        architecture,
        batch=1,
        prompt_tokens=min(batch * max(prompt, depth), engine["micro_batch"]),
        tokens=room,
        weights=weights,
        cache=keys,
    )
    weights_bytes = whole.weights_bytes
    if made:
        weights_bytes += _finer_tables_bytes(architecture, kind)
    layers = architecture.layer_count + 1
    on_gpu = gpu_layers(engine["gpu_layers"], layers)
    split = 0 < on_gpu < layers
    draft_bytes = 0
    if engine.get("draft"):
        drafted = formats.WRITTEN[engine["draft"]]
        draft_bytes = (
            held
            + memory(
                architecture,
                batch=1,
                prompt_tokens=1,
                tokens=room,
                weights=WeightFormat(drafted, dtype="float32"),
                cache=keys,
            ).weights_bytes
        )
        if drafted != own:
            draft_bytes += _finer_tables_bytes(architecture, drafted)

    def steps() -> dict[str, Steps]:
        # Of a draft's steps it depends on the text how many there are.
        if split or draft_bytes:
            return {}
        first = _as_run(prefill(architecture, batch, prompt, weights, keys, past=depth))
        made = {"ttft_s": Steps(first, first)}
        if new > 1:
            step = _as_run(
                decode(architecture, batch, depth + prompt + (new - 2) // 2, weights, keys)
            )
            made["tpot_s"] = Steps(step, step)
        return made

    return Expectation(
        {
            "weights_bytes": weights_bytes,
            "kv_bytes": held,
            "activation_bytes": whole.activation_bytes,
        },
        weights_bytes + held + draft_bytes + whole.activation_bytes,
        steps,
        floor_bytes=weights_bytes + held + draft_bytes,
    )


def _finer_tables_bytes(architecture: Architecture, kind: str) -> int:
    """What a file made here has more than one of llama.cpp's quantizer: Q8_0 tables."""
    from orchestrator.model import WeightFormat
    from orchestrator.model.weights import embedding_bytes, head_bytes

    def tables(table_kind: str) -> int:
        weights = WeightFormat(table_kind)
        head = 0 if architecture.tied else head_bytes(architecture, weights)
        return embedding_bytes(architecture, weights) + head

    finer = requantize.table_format(kind)
    return 0 if finer == kind else tables(finer) - tables(kind)


def _as_run(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """Bounded by peaks and bandwidth: what was timed under torch says nothing of its kernels."""
    return tuple(
        replace(
            operation,
            launches=0,
            dtype=_PACKED_PRODUCT if operation.packed else operation.dtype,
            packed=False,
            groups=0.0,
        )
        for operation in operations
    )
