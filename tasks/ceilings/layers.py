"""Whole layers of a reference model: what they take beside their products and their attention.

An operation that is repeated by itself finds its code and its data in the nearest cache; between
two products of a model, which go through megabytes of weights, it finds neither. So what is left of
a layer (norms, rotation, gate, residuals, the cache's growth, the program around them) is not timed
alone but as the difference: the layer's time less that of its products and its attention, shared
among the kernels that the arithmetic counts in the rest. The reference is a Llama of a shape that
no configuration here has, with more weights than a last-level cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.tasks.ceilings.timed_operations import Point, Timer

if TYPE_CHECKING:
    import torch

    from orchestrator.model import Measured, Operation

# Name of the point, and rows: sequences and tokens in each.
DECODES = ((1, 1), (4, 1))
PAST = 128
PREFILLS = ((1, 16), (1, 128), (1, 512))
STEPS = ((4, 16), (4, 64), (4, 256))
_LONGEST_S = 1.0


@dataclass(frozen=True)
class Shape:
    """Of the reference model."""

    width: int
    inner: int
    layers: int
    heads: int


CPU = Shape(512, 1536, 6, 8)
CUDA = Shape(2048, 6144, 6, 16)


class ReferenceLayers:
    """The reference model in one dtype, without a head.

    Parameters
    ----------
    trained : bool
        Whether training steps are measured too.
    """

    def __init__(
        self, device: torch.device, shape: Shape, name: str, timer: Timer, *, trained: bool
    ) -> None:
        import torch
        from transformers import LlamaConfig, LlamaModel

        self._config = LlamaConfig(
            vocab_size=32,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=4096,
        )
        self.name = name
        self._device = device
        self._timer = timer
        self._trained = trained
        self._model = LlamaModel(self._config).to(device, getattr(torch, name))

    def points(self) -> Iterator[Point]:
        """Seconds of whole passes: ``layers.<what>.<dtype>`` by sequences and tokens."""
        import torch

        with torch.inference_mode():
            self._model.eval()
            token_s = 0.0
            for batch, tokens in PREFILLS:
                # Where a processor emulates a dtype, the try alone would take many seconds.
                if token_s * batch * tokens > _LONGEST_S:
                    break
                seconds = self._timer.seconds(partial(self._run, batch, tokens), _LONGEST_S)
                if seconds is None:
                    break
                token_s = seconds / (batch * tokens)
                yield f"layers.prefill.{self.name}", batch, tokens, seconds
            for batch, tokens in DECODES:
                seconds = self._timer.seconds(self._decode(batch), _LONGEST_S)
                if seconds is not None:
                    yield f"layers.decode.{self.name}", batch, tokens, seconds
        if not self._trained:
            return
        self._model.train()
        for batch, tokens in STEPS:
            above: list[Any] = []

            def ahead(_: int, b: int = batch, t: int = tokens) -> Any:
                return self._model(self._ids(b, t), use_cache=False).last_hidden_state

            def back(_: int, states: Any, above: list[Any] = above) -> Any:
                if not above:
                    above.append(torch.ones_like(states))
                states.backward(above[0])

            with torch.enable_grad():
                found = self._timer.kept(
                    ahead, back, 1, between=self._let_go, longest_s=3 * _LONGEST_S
                )
            if found is None:
                break
            yield f"layers.forward.{self.name}", batch, tokens, found[0]
            yield f"layers.backward.{self.name}", batch, tokens, found[1]

    def passes(self, found: dict[tuple[str, float, float], float], bare: Measured) -> list[Point]:
        """What is left of each of these passes for one kernel, by the bytes it moves.

        Parameters
        ----------
        found : mapping
            Of :meth:`points`. One that took no longer than its products and its attention tells
            nothing of the rest, and is left out.
        bare : Measured
            Products and attention.
        """
        left = []
        for (name, batch, tokens), seconds in found.items():
            kind, _, dtype = name.removeprefix("layers.").partition(".")
            if dtype != self.name:
                continue
            timed_s, kernels, moved = 0.0, 0, 0.0
            for operation in self._operations(kind, int(batch), int(tokens)):
                known_s = bare.timed_s(operation)
                if known_s is not None:
                    timed_s += operation.count * known_s
                else:
                    kernels += operation.count * operation.launches
                    moved += operation.count * operation.bytes
            mode = kind if kind in ("forward", "backward") else "inference"
            if seconds > timed_s:
                each_s = (seconds - timed_s) / kernels
                left.append((f"passes.{mode}.{dtype}", moved / kernels, 1.0, each_s))
        return left

    def _operations(self, kind: str, batch: int, tokens: int) -> tuple[Operation, ...]:
        """What arithmetic counts in it, but for the head that the reference does not have."""
        from orchestrator.model import (
            EAGER,
            CacheFormat,
            WeightFormat,
            decode,
            prefill,
            read_architecture,
            step_operations,
        )

        architecture = read_architecture(self._config.to_dict())
        weights, cache = WeightFormat("none", self.name), CacheFormat(self.name)
        if kind == "decode":
            made = decode(architecture, batch, PAST, weights, cache, EAGER)
        elif kind == "prefill":
            made = prefill(architecture, batch, tokens, weights, cache, EAGER)
        else:
            step = step_operations(
                architecture, batch, tokens, parameter_dtype=self.name, execution=EAGER
            )
            made = step.forward if kind == "forward" else step.backward
        return tuple(
            replace(o, bytes=0.0, launches=0) if o.part == "embedding" else o
            for o in made
            if o.part not in ("head", "loss")
        )

    def _run(self, batch: int, tokens: int) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._config)
        return self._model(self._ids(batch, tokens), past_key_values=cache)

    def _decode(self, batch: int) -> Any:
        """One token after :data:`PAST`, and some more."""
        import torch
        from transformers import DynamicCache

        heads = self._config.num_key_value_heads
        width = self._config.hidden_size // self._config.num_attention_heads
        past = torch.zeros(batch, heads, PAST, width, dtype=self._model.dtype, device=self._device)
        # What is in it changes no time, and a prefill that makes it may take seconds.
        cache = DynamicCache(config=self._config)
        for layer in range(self._config.num_hidden_layers):
            cache.update(past, past, layer)
        token = self._ids(batch, 1)

        def step() -> None:
            self._model(token, past_key_values=cache)

        return step

    def _ids(self, batch: int, tokens: int) -> torch.Tensor:
        import torch

        return torch.zeros(batch, tokens, dtype=torch.long, device=self._device)

    def _let_go(self) -> None:
        self._model.zero_grad(set_to_none=True)
