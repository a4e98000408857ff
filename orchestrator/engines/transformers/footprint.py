"""What the weights weigh: bytes as they lie on the device, and bits for each parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from orchestrator.engines.port import Footprint

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig


def footprint(model: nn.Module) -> Footprint:
    """Measure ``model`` as it lies now; bitsandbytes may repack it in its first call."""
    storages: dict[tuple[str, int], int] = {}
    parameters = quantized = 0

    def weigh(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        storages[(str(tensor.device), storage.data_ptr())] = storage.nbytes()

    for parameter in model.parameters():
        count = _logical_count(parameter)
        parameters += count
        parts = _parts(parameter)
        if parts or not parameter.is_floating_point():
            quantized += count
        for part in parts or [parameter]:
            weigh(part)
        for tensor in _tensors_of(getattr(parameter, "quant_state", None)):
            weigh(tensor)
        for name in ("CB", "SCB"):
            if (part := getattr(parameter, name, None)) is not None:
                weigh(part)
    for module in model.modules():
        # LLM.int8() moves its scales from the parameter to this in the first call.
        for tensor in _tensors_of(getattr(module, "state", None), ("CB", "SCB")):
            weigh(tensor)
    for buffer in model.buffers():
        weigh(buffer)
    return Footprint(sum(storages.values()), parameters, quantized)


def parameters_of(config: PretrainedConfig, *, own_code: bool) -> int:
    """Numbers that a configuration's model has, tied ones once: it is built without its memory.

    A file may have others: tables that are computed, a head that is the embedding, packed ones.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=own_code)
    return sum(parameter.numel() for parameter in model.parameters())


def _parts(parameter: Any) -> list[torch.Tensor]:
    """The tensors that torchao's kind of parameter consists of; none of a plain one."""
    flatten = getattr(parameter, "__tensor_flatten__", None)
    return [getattr(parameter, name) for name in flatten()[0]] if flatten else []


def _logical_count(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel()) if state is None else math.prod(state.shape)


def _tensors_of(
    state: Any, names: tuple[str, ...] = ("absmax", "code", "offset", "state2")
) -> Iterator[torch.Tensor]:
    import torch

    for name in names if state is not None else ():
        part = getattr(state, name, None)
        if isinstance(part, torch.Tensor):
            yield part
        elif part is not None and name == "state2":
            yield from _tensors_of(part, ("absmax", "code"))
