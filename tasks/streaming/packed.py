"""4-bit weights in a file, and the way back: quantized once on disk, dequantized after transfer.

A matrix ``W`` becomes ``W`` (uint8, two numbers a byte), ``W.absmax`` (scale of each block) and,
where the scales are quantized themselves, ``W.nested_absmax``. Sizes and code books are the same
for every step and stay in memory: a JSON file and a small safetensors file beside the units.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ABSMAX = ".absmax"
NESTED_ABSMAX = ".nested_absmax"
_META = "packed.json"
_CODES = "codes.safetensors"


class Packer:
    """Quantizes matrices and gathers what must be remembered of them."""

    def __init__(self, scheme: str, *, double_quant: bool) -> None:
        self._scheme = scheme
        self._double_quant = double_quant
        self._metas: dict[str, dict[str, Any]] = {}
        self._codes: dict[str, torch.Tensor] = {}

    def pack(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors of ``weight``, (out, in), that go to disk."""
        from orchestrator.engines.transformers.quantization import import_bitsandbytes

        functional = import_bitsandbytes().functional
        data, state = functional.quantize_4bit(
            weight.contiguous(), compress_statistics=self._double_quant, quant_type=self._scheme
        )
        tensors = {name: data, name + ABSMAX: state.absmax}
        self._codes.setdefault("code", state.code.clone())
        if state.nested:
            tensors[name + NESTED_ABSMAX] = state.state2.absmax
            self._codes.setdefault("nested_code", state.state2.code.clone())
        self._metas[name] = {
            "shape": list(weight.shape),
            "blocksize": int(state.blocksize),
            "nested_blocksize": int(state.state2.blocksize) if state.nested else None,
            "nested_offset": float(state.offset) if state.nested else None,
        }
        return tensors

    def save(self, directory: Path) -> None:
        """Write what stays in memory; nothing where nothing was packed."""
        if not self._metas:
            return
        from safetensors.torch import save_file

        kept = {"scheme": self._scheme, "matrices": self._metas}
        (directory / _META).write_text(json.dumps(kept, sort_keys=True))
        save_file(self._codes, directory / _CODES)


class Unpacker:
    """Gives back matrices that :class:`Packer` packed; knows none where ``directory`` has none.

    Attributes
    ----------
    scheme : str
        ``nf4`` or ``fp4``; empty where nothing is packed.
    """

    def __init__(self, directory: Path | None, device: torch.device, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._states: dict[str, dict[str, Any]] = {}
        self.scheme = ""
        self._codes: dict[str, torch.Tensor] = {}
        if directory is None or not (directory / _META).is_file():
            return
        import torch
        from safetensors.torch import load_file

        from orchestrator.engines.transformers.quantization import import_bitsandbytes

        self._functional = import_bitsandbytes().functional
        kept = json.loads((directory / _META).read_text())
        self.scheme = str(kept["scheme"])
        self._codes = load_file(directory / _CODES, device=str(device))
        for name, meta in kept["matrices"].items():
            offset = meta["nested_offset"]
            self._states[name] = {
                **meta,
                "shape": torch.Size(meta["shape"]),
                "nested_offset": None if offset is None else torch.tensor(offset, device=device),
            }

    def __contains__(self, name: object) -> bool:
        return name in self._states

    def unpack(self, name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """The matrix ``name``, (out, in), from its flat bytes, in new memory."""
        import torch

        meta = self._states[name]
        state2 = None
        if meta["nested_blocksize"] is not None:
            absmax = tensors[name + ABSMAX]
            state2 = self._functional.QuantState(
                absmax=tensors[name + NESTED_ABSMAX].view(torch.float32),
                blocksize=meta["nested_blocksize"],
                code=self._codes["nested_code"],
                dtype=torch.float32,
            )
        else:
            absmax = tensors[name + ABSMAX].view(torch.float32)
        state = self._functional.QuantState(
            absmax=absmax,
            shape=meta["shape"],
            code=self._codes["code"],
            blocksize=meta["blocksize"],
            quant_type=self.scheme,
            dtype=self._dtype,
            offset=meta["nested_offset"],
            state2=state2,
        )
        matrix: torch.Tensor = self._functional.dequantize_4bit(tensors[name].view(-1, 1), state)
        return matrix
