"""The quantization schemes as bitsandbytes, torchao and transformers spell them.

``none`` holds the weights in ``quant.dtype``; ``int8`` is LLM.int8(); ``nf4`` and ``fp4`` are
QLoRA's 4-bit formats in blocks of 64. For these ``quant.dtype`` is the compute dtype, and that of
what stays dense: embeddings, norms and the output head.

``source`` is what a checkpoint of compressed-tensors holds (:mod:`.compressed`).

``int8wo`` and ``int4wo`` are torchao's weight-only integers: ``quant.group_size`` values of a row
share a scale, and ``quant.dtype`` is as for the others.

bitsandbytes probes CUDA when it is imported: only the measured child may do that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.engines.transformers import compressed
from orchestrator.errors import one_line
from orchestrator.measure import Infeasible

if TYPE_CHECKING:
    import torch
    from torch import nn

FOUR_BIT = ("nf4", "fp4")
QUANTIZED = ("int8", *FOUR_BIT)
# Of the parameters outside embeddings, this share at least must be quantized for the label to be
# true: mixture-of-experts models hold most weights in fused tensors that bitsandbytes leaves alone.
LEAST_QUANTIZED = 0.5
WEIGHT_ONLY = ("int8wo", "int4wo")
# What torchao's four-bit kernel for CPUs has; of eight bits it takes any.
_GROUPS = {"int8wo": (32, 64, 128, 256), "int4wo": (32, 64, 128)}

_BLOCK = 64
_PACKED_ROWS = 32


def quantizer(quant: Mapping[str, Any]) -> str | None:
    """The distribution that quantizes so; None for ``none``."""
    if quant["scheme"] == "source":
        return compressed.PACKAGE
    if quant["scheme"] in WEIGHT_ONLY:
        return "torchao"
    return "bitsandbytes" if quant["scheme"] in QUANTIZED else None


def import_quantizer(quant: Mapping[str, Any]) -> None:
    """Import what quantizes so; nothing for ``none``. :class:`Infeasible` where it is not there."""
    if quant["scheme"] in QUANTIZED:
        import_bitsandbytes()
    elif quant["scheme"] in WEIGHT_ONLY:
        _torchao_config(quant)
    elif quant["scheme"] == "source":
        try:
            import compressed_tensors.compressors  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:
            raise Infeasible(
                f"{compressed.PACKAGE} cannot be used here: {one_line(error)}",
                fix=f"U{compressed.ADVICE[1:]}",
            ) from error


def group_problem(rows: Iterable[int], quant: Mapping[str, Any]) -> str | None:
    """Why rows of so many values cannot be had in ``quant.group_size``; None where they can."""
    scheme, group = quant["scheme"], quant.get("group_size")
    lengths = sorted(set(rows))
    if scheme not in WEIGHT_ONLY or group is None:
        return None
    fit = [str(size) for size in _GROUPS[scheme] if all(row % size == 0 for row in lengths)]
    known = scheme == "int8wo" or group in _GROUPS[scheme]
    if known and all(row % group == 0 for row in lengths):
        return None
    whole = ", and null for a scale to each row" if scheme == "int8wo" else ""
    return (
        f"quant.group_size={group} does not divide the rows of "
        f"{', '.join(map(str, lengths))} values of this model, as torchao's {scheme} needs it; "
        f"those that do: {', '.join(fit) or 'none'}{whole}"
    )


def quantize_weight_only(model: nn.Module, quant: Mapping[str, Any]) -> None:
    """Quantize the linear layers of a dense model on a CPU by torchao, in place.

    The output head stays dense, as bitsandbytes leaves it.

    Raises
    ------
    Infeasible
        If there is nothing to quantize, the group size does not fit, or torchao's kernel takes no
        layer of such a size.
    """
    import torch
    from torchao.quantization import quantize_

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None

    def is_inner(module: nn.Module, name: str) -> bool:
        return type(module) is torch.nn.Linear and module is not head

    layers = [module for module in model.modules() if is_inner(module, "")]
    if not layers:
        raise Infeasible("torchao packs linear modules, and the layers have none", where="quant")
    if problem := group_problem((module.in_features for module in layers), quant):
        raise Infeasible(problem, where="quant.group_size")
    try:
        quantize_(model, _torchao_config(quant), filter_fn=is_inner)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise Infeasible(
            f"torchao cannot hold this model as {quant['scheme']}: {one_line(error)}", where="quant"
        ) from error


def _torchao_config(quant: Mapping[str, Any]) -> Any:
    group = quant["group_size"]
    try:
        if quant["scheme"] == "int4wo":
            # torchao keeps what it has for CPUs there.
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

            return PrototypeInt4WeightOnlyConfig(group_size=group, set_inductor_config=False)
        from torchao.quantization import Int8WeightOnlyConfig
        from torchao.quantization.granularity import PerGroup, PerRow
    except (ImportError, OSError, RuntimeError) as error:
        raise Infeasible(
            f"torchao cannot be used here: {one_line(error)}", fix="Use environment=torchao"
        ) from error
    granularity = PerRow() if group is None else PerGroup(group)
    return Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False)


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
    """``quantization_config`` for ``from_pretrained``; None for what is read as dense weights."""
    import torch
    from transformers import BitsAndBytesConfig, CompressedTensorsConfig

    scheme = quant["scheme"]
    if scheme == "source":
        # Left packed they would be unpacked in the first call, and asymmetric ones do not load.
        return CompressedTensorsConfig(dequantize=True)
    if scheme not in QUANTIZED:
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
