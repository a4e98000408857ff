"""What can be refused before anything is loaded, while a sweep is being planned.

Nothing here imports torch or transformers: it is asked for every trial of a plan.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from orchestrator.engines.port import has_package
from orchestrator.engines.source import context_tokens, find_problem, model_path
from orchestrator.engines.transformers.compressed import ADVICE, PACKAGE, source_problem
from orchestrator.engines.transformers.configuration import known_config
from orchestrator.engines.transformers.model_types import (
    has_static_cache,
    packing_problem,
    type_problem,
)
from orchestrator.engines.transformers.quantization import QUANTIZED, WEIGHT_ONLY, quantizer
from orchestrator.measure import ConfigError, Identity, Infeasible
from orchestrator.measure.wording import format_name

ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flex_attention")
_NO_STATIC_CACHE = (
    "transformers says of no {} that it runs over a static cache: use engine.cache=dynamic"
)
FORMATS = ("fp32", "bf16", "fp16", *QUANTIZED, *WEIGHT_ONLY, "source")
_ADVICE = {
    "bitsandbytes": "pip install bitsandbytes",
    "torchao": "use environment=torchao",
    PACKAGE: ADVICE,
}


def check_model(identity: Identity) -> str | None:
    """None, or one line why this model cannot be had at this quantization on this device.

    Raises
    ------
    ConfigError
        If the model does not exist or a value cannot be meant: no other trial would fare better.
    """
    if problem := find_problem(identity["model"]):
        raise problem.as_config_error()
    if (asked := format_name(identity["quant"])) not in FORMATS:
        return f"transformers has no {asked}; it has {', '.join(FORMATS)}"
    model = identity["model"]
    if model["source"] == "random":
        _check_sizes(json.dumps(model["architecture"], sort_keys=True))
    if asked == "source" and model["source"] not in ("path", "hub"):
        return source_problem({})
    config = known_config(model)
    if config is not None:
        trusted = bool(model.get("trust_remote_code"))
        where = "model.architecture" if model["source"] == "random" else str(model_path(model))
        if problem := type_problem(config, where, own_code=trusted):
            raise problem.as_config_error()
        if reason := packing_problem(config, identity["quant"]):
            return reason
    by = quantizer(identity["quant"])
    if by == "torchao" and identity["device"]["kind"] != "cpu":
        return f"{asked} is run on the CPU here: device=cpu"
    if by and not has_package(identity, by):
        return f"{asked} needs {by}: {_ADVICE[by]}"
    return None


@lru_cache(maxsize=256)
def _check_sizes(architecture: str) -> None:
    """Refuse sizes that no model can have, before anything starts.

    What else the arithmetic does not know may be right all the same: transformers decides.
    """
    from orchestrator.model import read_architecture
    from orchestrator.model.fields import ImpossibleSize

    try:
        read_architecture(json.loads(architecture), strict=False)
    except ImpossibleSize:
        raise
    except ConfigError:
        return


def check_attention(identity: Identity, attention: str) -> str | None:
    """None, or one line why this attention implementation, one of :data:`ATTENTIONS`, cannot be."""
    if attention != "flash_attention_2":
        return None
    if identity["device"]["kind"] != "cuda":
        return "flash_attention_2 needs a CUDA device"
    if identity["quant"]["dtype"] == "float32":
        return "flash_attention_2 needs bfloat16 or float16, not float32"
    if not has_package(identity, "flash-attn"):
        return "flash_attention_2 needs flash-attn: pip install flash-attn"
    return None


def check_compile(identity: Identity, compile_asked: bool) -> str | None:
    """None, or one line why the model cannot be compiled here."""
    if compile_asked and identity["device"]["kind"] == "cpu" and _compiler() is None:
        return "compile on the CPU needs a C++ compiler (g++ or clang++, or CXX)"
    return None


def check_cache(identity: Identity, cache: str, compiled: bool) -> str | None:
    """None, or one line why the model cannot generate with a static cache."""
    if cache != "static":
        return None
    config = known_config(identity["model"])
    if config is not None and not has_static_cache(str(config.get("model_type"))):
        return _NO_STATIC_CACHE.format(config.get("model_type"))
    if compiled and identity["task"].get("new_tokens") == 1:
        return "with engine.cache=static the decode step is compiled: task.new_tokens=1 has none"
    return None


def refuse_static_cache(model: Any) -> None:
    """As :func:`check_cache`, of a loaded model; raises :class:`Infeasible`."""
    generates = hasattr(model, "_prepare_cache_for_generation")
    if not (generates and getattr(model, "_can_compile_fullgraph", False)):
        reason = _NO_STATIC_CACHE.format(model.config.model_type)
        raise Infeasible(reason, where="engine.cache")


def check_length(model: Mapping[str, Any], tokens: int, named: str) -> str | None:
    """None, or one line saying that ``tokens`` are more than the model's context, where known."""
    limit = context_tokens(model)
    if limit is not None and tokens > limit:
        return f"{named} = {tokens} tokens, more than the model's context of {limit}"
    return None


def _compiler() -> str | None:
    named = (os.environ.get("CXX") or "").split()
    candidates = (*named[:1], "g++", "clang++", "c++")
    return next((found for name in candidates if (found := shutil.which(name))), None)
