"""Numbers of a GGUF file's metadata in transformers' words; what has none is refused.

transformers takes some of them from some families, and leaves defaults of its own in place of the
others: of rotary positions their scaling, of some families the base frequency and how much of a
head is turned. These are llama.cpp's rules (``llama-model.cpp``, ``ggml.c``'s YaRN), of which each
has an equal here:

==========================================  ======================================================
``rope.scaling.type`` ``linear``, or a      ``linear``
factor without a type
``yarn``                                    ``yarn``; its magnitude times ``attn_factor``
``longrope``, tensors ``rope_factors_*``    ``longrope``
a tensor ``rope_freqs``                     ``llama3`` where its values are that rule's, else
                                            ``longrope`` with the same factors at every length
==========================================  ======================================================
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.engines.gguf_files import GgufModel

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Llama 3.1's and 3.2's: factor, low and high frequency factor, original context.
_LLAMA3 = tuple((factor, 1.0, 4.0, 8192) for factor in (8.0, 32.0))
_NO_CHANGE = (None, "none", "linear")
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_EPSILON_FIELDS = [
    *("rms_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_eps", "layer_norm_epsilon"),
]
# Gemma's largest models, which llama.cpp knows by their layers: scores are over the square root of
# the hidden size a head, and not of a head's width.
_WIDER_SCORES = {"gemma2": 46, "gemma3": 62}
# Metadata that changes what is computed, and the configuration field that must say the same.
_SCALES = {
    "attention.scale": "attention_multiplier",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logit_scale",
    "attention.clamp_kqv": "clip_qkv",
    "attention.max_alibi_bias": "alibi_bias_max",
}


class NotKept(Exception):
    """What the file says cannot be said to transformers: one line."""


def apply_metadata(model: GgufModel, config: Any) -> None:
    """Set what ``model`` says in a transformers configuration made from some of its metadata.

    Raises
    ------
    NotKept
        Where there is no equal.
    """
    family = str(model.value("general.architecture"))
    for key, field in _SCALES.items():
        value = model.value(f"{family}.{key}")
        if value in (None, 0, 0.0) or _alike(value, getattr(config, field, None)):
            continue
        raise NotKept(f"{family}.{key} = {value:g}, which transformers does not take from GGUF")
    epsilons = [e for name in _EPSILONS if (e := model.value(f"{family}.{name}"))]
    for field in _EPSILON_FIELDS:
        if epsilons and hasattr(config, field):
            setattr(config, field, float(epsilons[0]))
    scaling = rope_of(model, family)
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None:
        if scaling:
            raise NotKept(f"{family} has rotary scaling here and none in transformers")
        return
    heads, hidden = config.num_attention_heads, config.hidden_size
    width = getattr(config, "head_dim", None) or hidden // heads
    if hasattr(config, "query_pre_attn_scalar"):
        wider = config.num_hidden_layers == _WIDER_SCORES.get(family)
        config.query_pre_attn_scalar = hidden // heads if wider else width
    said = {"rope_theta": _base(model.value(f"{family}.rope.freq_base")), **scaling}
    if "full_attention" in parameters:
        # Of layers with a window llama.cpp scales nothing.
        full = {**parameters["full_attention"], **said}
        config.rope_parameters = {**parameters, "full_attention": full}
    elif any(isinstance(value, dict) for value in parameters.values()):
        raise NotKept(f"rotary positions of {family}, whose layers differ in them")
    else:
        turned = int(model.value(f"{family}.rope.dimension_count") or width)
        if "partial_rotary_factor" in parameters:
            said["partial_rotary_factor"] = turned / width
        elif turned != (getattr(config, "rotary_dim", None) or width):
            raise NotKept(f"{family}.rope.dimension_count = {turned} of {width}")
        config.rope_parameters = {**parameters, **said}
    original = scaling.get("original_max_position_embeddings")
    if original is not None and hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = original


def rope_of(model: GgufModel, family: str) -> dict[str, Any]:
    """``rope_parameters`` that differ from plain ones; empty for none."""

    def said(name: str) -> Any:
        return model.value(f"{family}.rope.{name}")

    kind = said("scaling.type")
    factor = float(said("scaling.factor") or said("scale_linear") or 1.0)
    tensors = {t.name: t for t in model.tensors if t.name in ROPE_TENSORS}
    magnitude = said("scaling.attn_factor")
    context = int(said("scaling.original_context_length") or 0)
    limit = int(model.value(f"{family}.context_length") or 0)
    for name, neutral in (("yarn_ext_factor", 1.0), ("yarn_log_multiplier", 0.0), ("alpha", 0.0)):
        value = said(f"scaling.{name}")
        if value is not None and not _alike(value, neutral):
            raise NotKept(f"rotary scaling with {name} = {value:g}")
    if tensors:
        if kind not in (None, "none", "longrope") or (factor != 1.0 and kind != "longrope"):
            raise NotKept(f"rotary factors of its own and {kind or 'linear'} scaling by {factor:g}")
        return _by_factors(tensors, context or limit, magnitude, limit, _base(said("freq_base")))
    if kind == "longrope":
        raise NotKept("longrope without its factors")
    if kind == "yarn":
        found: dict[str, Any] = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": context or limit,
        }
        for name in ("beta_fast", "beta_slow"):
            if (value := said(f"scaling.yarn_{name}")) is not None:
                found[name] = float(value)
        extra = float(magnitude or said("scaling.yarn_attn_factor") or 1.0)
        if extra != 1.0:
            found["attention_factor"] = extra * (0.1 * math.log(factor) + 1.0)
        return found
    if kind not in _NO_CHANGE:
        raise NotKept(f"rotary scaling of the type {kind!r}")
    if kind == "none" or factor == 1.0:
        return {}
    return {"rope_type": "linear", "factor": factor}


def _by_factors(
    tensors: dict[str, Any], context: int, magnitude: Any, limit: int, base: float
) -> dict[str, Any]:
    if (plain := tensors.get("rope_freqs.weight")) is not None:
        short = long = [float(value) for value in plain.data.reshape(-1)]
        if all(_alike(value, 1.0) for value in long):
            return {}
        if found := _llama3(long, base):
            return found
        context, magnitude = limit, 1.0
    else:
        names = ("rope_factors_short.weight", "rope_factors_long.weight")
        if any(name not in tensors for name in names):
            raise NotKept("rotary factors for one length only")
        short, long = ([float(one) for one in tensors[name].data.reshape(-1)] for name in names)
    found = {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": context,
    }
    if magnitude is not None:
        found["attention_factor"] = float(magnitude)
    return found


def _llama3(factors: list[float], base: float) -> dict[str, Any] | None:
    """The rule that makes these factors, as transformers and llama.cpp's converter write it."""
    for factor, low, high, context in _LLAMA3:
        made = []
        for index in range(len(factors)):
            wavelength = 2 * math.pi * base ** (index / len(factors))
            if wavelength < context / high:
                made.append(1.0)
            elif wavelength > context / low:
                made.append(factor)
            else:
                smooth = (context / wavelength - low) / (high - low)
                made.append(1.0 / ((1 - smooth) / factor + smooth))
        if all(_alike(one, two) for one, two in zip(made, factors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    return None


def _base(said: Any) -> float:
    return float(said) if said else 10000.0


def _alike(one: Any, two: Any) -> bool:
    return two is not None and math.isclose(float(one), float(two), rel_tol=1e-3, abs_tol=1e-9)
