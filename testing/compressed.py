"""Makes a checkpoint of compressed-tensors, with the library; run by a Python that has it.

    python compressed.py SOURCE TARGET WEIGHTS [FORMAT]

``WEIGHTS`` is JSON, the library's QuantizationArgs; linear layers but the head are packed so, each
scale from the extremes of what shares it. Next to the checkpoint, in ``TARGET/dense``, are the same
weights unpacked by formulas of our own.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def main(source: Path, target: Path, weights: str, packed_as: str | None = None) -> None:
    """Read plain weights from ``source``, write the checkpoint and what it unpacks to."""
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    asked = QuantizationArgs(**json.loads(weights))
    scheme = QuantizationScheme(targets=["Linear"], weights=asked)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    apply_quantization_config(model, config)
    for _, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        grouped = module.weight.data.float()
        grouped = grouped.reshape(len(grouped), -1, asked.group_size or grouped.shape[1])
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), asked)
        module.weight_scale.data.copy_(scale)
        module.weight_zero_point.data.copy_(zero)
        module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model, packed_as)
    compressor.compress_model(model)
    model.save_pretrained(target)
    compressor.update_config(target)
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    dense = unpacked(load_file(target / "model.safetensors"), asked.num_bits)
    plain.load_state_dict({**plain.state_dict(), **dense})
    plain.save_pretrained(target / "dense")
    for file in source.glob("*token*"):
        for place in (target, target / "dense"):
            shutil.copy(file, place)


def unpacked(tensors: Mapping[str, torch.Tensor], bits: int) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint's packed layers, bfloat16, by formulas of our own."""
    import torch

    def codes(words: torch.Tensor) -> torch.Tensor:
        """Numbers in words of 32 bits, the lowest bits first; each is stored above its least."""
        each = words[..., None] >> torch.arange(0, 32, bits, dtype=torch.int32)
        return ((each & (2**bits - 1)) - 2 ** (bits - 1)).flatten(-2).float()

    found = {}
    for name, scale in tensors.items():
        layer, _, what = name.rpartition(".")
        if what != "weight_scale":
            continue
        packed = tensors.get(f"{layer}.weight_packed")
        weight = tensors[f"{layer}.weight"].float() if packed is None else codes(packed)
        zero = tensors.get(f"{layer}.weight_zero_point")
        # Zero points are packed along the other dimension.
        offset = torch.zeros_like(scale) if zero is None else codes(zero.T.contiguous()).T
        grouped = weight.reshape(*scale.shape, -1)
        dense = (grouped - offset[..., None]) * scale.float()[..., None]
        found[f"{layer}.weight"] = dense.reshape(weight.shape).to(torch.bfloat16)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
