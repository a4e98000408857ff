"""Proof that a loaded model is what was asked for: weights, attention, device, threads.

A number under a label ``nf4`` that was measured on float32 weights is worse than no number. Every
check writes what was asked and what was found, and raises ``Mismatch`` where they differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.engines.transformers.attention_choice import NO_ATTENTION, has_attention
from orchestrator.engines.transformers.quantization import (
    FOUR_BIT,
    LEAST_QUANTIZED,
    WEIGHT_ONLY,
)
from orchestrator.measure import Recorder

if TYPE_CHECKING:
    from torch import nn

# What torchao and bitsandbytes call their own.
_WEIGHT_ONLY = {"Int8Tensor": ("int8wo", "int8"), "Int4OpaqueTensor": ("int4wo", "uint8")}
_PACKED = ("Linear8bit", "Linear4bit", "LinearFP4", "LinearNF4")


def dtype_name(dtype: Any) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def linear_kind(module: nn.Module, *, per_row: bool = False) -> str:
    """What a linear layer's weights are: ``float32``, ``int8``, ``nf4``, ``nf4+double`` ...

    A scale to a whole row is called so where it is asked for ``per_row``, else by its length.
    """
    weight: Any = module.weight
    kind = type(module).__name__
    dtype = dtype_name(weight.dtype)
    if (packed := _WEIGHT_ONLY.get(type(weight).__name__)) is not None:
        scheme, bits = packed
        if dtype_name(weight.qdata.dtype) != bits or getattr(weight, "act_quant_kwargs", None):
            return f"{type(weight).__name__}[{weight.qdata.dtype}]"
        group = weight.block_size[-1]
        return _grouped(scheme, None if per_row and group == weight.shape[-1] else group)
    if not kind.startswith(_PACKED):  # a router or the like may be a kind of its own
        return dtype
    if kind == "Linear8bitLt":
        return "int8" if dtype == "int8" else f"Linear8bitLt[{dtype}]"
    if kind == "Linear4bit":
        state = getattr(weight, "quant_state", None)
        if state is None or dtype != "uint8":
            return f"Linear4bit[{dtype}]"
        return f"{state.quant_type}{'+double' if state.nested else ''}"
    return f"{kind}[{dtype}]"


def expected_kind(quant: Mapping[str, Any]) -> str:
    """What :func:`linear_kind` must say of every linear layer under ``identity["quant"]``."""
    scheme = str(quant["scheme"])
    if scheme == "none":
        return str(quant["dtype"])
    if scheme in WEIGHT_ONLY:
        return _grouped(scheme, quant["group_size"])
    if scheme in FOUR_BIT and quant["double_quant"]:
        return f"{scheme}+double"
    return scheme


def _grouped(scheme: str, group: int | None) -> str:
    return f"{scheme} by row" if group is None else f"{scheme} in groups of {group}"


def check_weights(model: nn.Module, quant: Mapping[str, Any], recorder: Recorder) -> None:
    """Every linear layer but the output head is of the scheme and dtype asked for.

    To be called before the first call of the model, while double quantization can still be seen.

    Raises
    ------
    Mismatch
        If any layer is of another kind, or too little of the model is quantized.
    """
    import torch

    asked = expected_kind(quant)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    per_row = quant.get("group_size") is None
    kinds = Counter(linear_kind(module, per_row=per_row) for module in linears)
    if not kinds:  # GPT-2's kind of layer: no nn.Linear at all
        kinds = Counter(dtype_name(p.dtype) for p in model.parameters() if p.dim() > 1)
    got = ", ".join(f"{kind} x {count}" for kind, count in sorted(kinds.items()))
    recorder.engaged("weights", asked, got, ok=set(kinds) == {asked})
    if quant["scheme"] != "none":
        _check_share(model, asked, recorder)
        compute = {dtype_name(m.compute_dtype) for m in linears if hasattr(m, "compute_dtype")}
        if quant["scheme"] in WEIGHT_ONLY:
            compute = {dtype_name(module.weight.dtype) for module in linears}
        if compute:
            recorder.engaged("compute dtype", quant["dtype"], ", ".join(sorted(compute)))


def check_setting(
    model: nn.Module, attention: str, device: Mapping[str, Any], threads: int, recorder: Recorder
) -> None:
    """Attention implementation, device and intra-op threads are as asked.

    Raises
    ------
    Mismatch
        If one is not.
    """
    import torch

    config: Any = model.config
    if has_attention(config):
        recorder.engaged("attention", attention, config._attn_implementation)
    else:
        recorder.engaged("attention", attention, NO_ATTENTION, ok=True)
    devices = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    recorder.engaged("device", device["kind"], ", ".join(sorted(devices)))
    recorder.engaged("threads", threads, torch.get_num_threads())


def _check_share(model: nn.Module, asked: str, recorder: Recorder) -> None:
    from orchestrator.engines.transformers.footprint import footprint

    size = footprint(model)
    embeddings = {
        id(module.weight): int(module.weight.numel())
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
    }
    body = size.parameters - sum(embeddings.values())
    share = (size.quantized_parameters or 0) / body if body else 0.0
    recorder.engaged(
        "quantized share",
        f"{asked} for most parameters outside the embeddings",
        f"{share:.3f}",
        ok=share >= LEAST_QUANTIZED,
    )
