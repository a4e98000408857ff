"""The quantization schemes as bitsandbytes and transformers spell them.

``none`` holds the weights in ``quant.dtype``; ``int8`` is LLM.int8(); ``nf4`` and ``fp4`` are
QLoRA's 4-bit formats in blocks of 64. For these ``quant.dtype`` is the compute dtype, and that of
what stays dense: embeddings, norms and the output head.

bitsandbytes probes CUDA when it is imported: only the measured child may do that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.measure import Infeasible

if TYPE_CHECKING:
    import torch
    from torch import nn

FOUR_BIT = ("nf4", "fp4")
QUANTIZED = ("int8", *FOUR_BIT)
# Of the parameters outside embeddings, this share at least must be quantized for the label to be
# true: mixture-of-experts models hold most weights in fused tensors that bitsandbytes leaves alone.
LEAST_QUANTIZED = 0.5

_BLOCK = 64
_PACKED_ROWS = 32


def import_bitsandbytes() -> Any:
    """bitsandbytes, told not to log a line for every matrix product.

    LLM.int8() warns at each of its hundreds of products a token that it casts its input, and
    writing that costs more than a tenth of a decode step.

    Raises
    ------
    Infeasible
        If it is not installed or has no kernels for this machine.
    """
    try:
        import bitsandbytes
    except (ImportError, OSError, RuntimeError) as error:
        raise Infeasible(
            f"bitsandbytes cannot be used here: {error}", fix="pip install bitsandbytes"
        ) from error
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return bitsandbytes


def transformers_config(quant: Mapping[str, Any]) -> Any:
    """``quantization_config`` for ``from_pretrained``; None for ``none``."""
    import torch
    from transformers import BitsAndBytesConfig

    scheme = quant["scheme"]
    if scheme == "none":
        return None
    if scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=scheme,
        bnb_4bit_use_double_quant=bool(quant["double_quant"]),
        bnb_4bit_compute_dtype=getattr(torch, quant["dtype"]),
    )


def quantize_linears(model: nn.Module, quant: Mapping[str, Any], device: torch.device) -> None:
    """Replace the linear layers of a dense model by quantized ones, in place.

    What ``from_pretrained`` does while it reads a checkpoint, for a model that was never saved.
    The output head stays dense, as it does there.
    """
    import torch

    bnb = import_bitsandbytes()
    keep = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    compute = getattr(torch, quant["dtype"])
    for name, dense in list(model.named_modules()):
        if type(dense) is not torch.nn.Linear or dense is keep:
            continue
        has_bias = dense.bias is not None
        new: nn.Module
        with torch.device("meta"):
            if quant["scheme"] == "int8":
                new = bnb.nn.Linear8bitLt(
                    dense.in_features,
                    dense.out_features,
                    bias=has_bias,
                    has_fp16_weights=False,
                    threshold=6.0,
                )
            else:
                new = bnb.nn.Linear4bit(
                    dense.in_features,
                    dense.out_features,
                    bias=has_bias,
                    compute_dtype=compute,
                    compress_statistics=bool(quant["double_quant"]),
                    quant_type=quant["scheme"],
                )
        if quant["scheme"] == "int8":
            new.weight = bnb.nn.Int8Params(
                dense.weight.data.cpu(), requires_grad=False, has_fp16_weights=False
            )
        else:
            new.weight = bnb.nn.Params4bit(
                dense.weight.data,
                requires_grad=False,
                compress_statistics=bool(quant["double_quant"]),
                quant_type=quant["scheme"],
                module=new,
            )
        new.bias = dense.bias
        new.weight = new.weight.to(device)  # this is what quantizes
        model.set_submodule(name, new)


def refuse_unpackable(model: nn.Module, quant: Mapping[str, Any]) -> None:
    """Say in a line what bitsandbytes would say by a bare assertion in the first call.

    On a CPU with AVX512-BF16 it repacks 4-bit weights for its fast kernel, which needs rows in
    groups of 32 and columns in whole blocks of 64.

    Raises
    ------
    Infeasible
        Naming the first layer that does not fit.
    """
    if quant["scheme"] not in FOUR_BIT:
        return
    bnb = import_bitsandbytes()
    if not bnb.functional.has_avx512bf16():
        return
    for name, module in model.named_modules():
        if not isinstance(module, bnb.nn.Linear4bit) or module.weight.device.type != "cpu":
            continue
        if module.out_features % _PACKED_ROWS or module.in_features % _BLOCK:
            raise Infeasible(
                f"{quant['scheme']} on this CPU needs layers of 32 x 64 blocks; {name} is "
                f"{module.out_features} x {module.in_features}",
                where="quant",
            )
