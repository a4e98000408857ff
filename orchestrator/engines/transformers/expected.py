"""What arithmetic expects of an inference and of a training step, for predictions and preflight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from orchestrator.engines.transformers.compressed import quant_in_memory
from orchestrator.engines.transformers.configuration import known_config
from orchestrator.host import cpu
from orchestrator.measure import Identity

if TYPE_CHECKING:
    from orchestrator.model import (
        Architecture,
        Expectation,
        WeightFormat,
    )


def expect_inference(identity: Identity, config: Mapping[str, Any] | None) -> Expectation | None:
    """Sizes, time to the first token and time per token of a generation.

    Parameters
    ----------
    config : mapping or None
        The model's Hugging Face configuration; None: as far as it can be had without loading.

    Returns
    -------
    Expectation or None
        None where the configuration is not at hand.

    Raises
    ------
    ConfigError
        If the arithmetic does not know the model, or a field is missing.
    """
    # Here and not above: planning imports every task, and mostly asks it for nothing of this.
    from orchestrator.model import (
        CacheFormat,
        Execution,
        Expectation,
        Steps,
        decode,
        kv_bytes,
        memory,
        prefill,
    )

    found = config if config is not None else known_config(identity["model"])
    if found is None:
        return None
    architecture = _architecture(json.dumps(found, sort_keys=True))
    options, engine = identity["task"], identity["engine"]
    batch, prompt, new = options["batch_size"], options["prompt_tokens"], options["new_tokens"]
    depth = options.get("depth", 0)
    weights = _weights({**identity, "quant": quant_in_memory(identity["quant"], found)})
    cache = CacheFormat(weights.dtype)
    static = engine.get("cache") == "static"
    # The last token is never fed back, so a cache that grows never holds it.
    room = depth + prompt + new - (not static)
    held = memory(
        architecture,
        batch=batch,
        prompt_tokens=max(prompt, depth),
        tokens=room,
        weights=weights,
        cache=cache,
    )
    sizes = {
        "weights_bytes": held.weights_bytes,
        "kv_bytes": kv_bytes(architecture, room, batch=batch, cache=cache),
        "activation_bytes": held.activation_bytes,
    }

    def steps() -> dict[str, Steps]:
        causal = engine["attention"] != "eager"
        compiled = Execution(fused=bool(engine["compile"]), causal=causal, absorbed=False)
        # Over a static cache the decode step alone is compiled.
        first = Execution(fused=compiled.fused and not static, causal=causal, absorbed=False)
        common = (weights, cache)
        found = {
            "ttft_s": Steps(
                prefill(architecture, batch, prompt, *common, past=depth),
                prefill(architecture, batch, prompt, *common, first, depth),
            )
        }
        if new > 1:
            middle = room if static else depth + prompt + (new - 2) // 2
            found["tpot_s"] = Steps(
                decode(architecture, batch, middle, *common),
                decode(architecture, batch, middle, *common, compiled),
            )
        return found

    floor = held.weights_bytes + held.kv_bytes
    return Expectation(sizes, held.total_bytes, steps, floor_bytes=floor)


@lru_cache(maxsize=256)
def _architecture(config: str) -> Architecture:
    from orchestrator.model import read_architecture

    return read_architecture(json.loads(config), strict=False)


def _weights(identity: Identity) -> WeightFormat:
    from orchestrator.model import WeightFormat

    on_cpu = identity["device"]["kind"] == "cpu"
    # bitsandbytes repacks four-bit weights on a CPU with these instructions.
    repacks = on_cpu and "avx512_bf16" in cpu.flags()
    return WeightFormat.from_quant(identity["quant"], packed_for_cpu=repacks)
