"""The model's own forward, its weights present only while each part of it runs.

::

    hook before          take the unit, create its parameters     wait | disk_read pin h2d, create
    the module itself    as in the resident model: equal tokens   forward
    hook after           drop the parameters, release the slot    free

The model is built without weights; masks, positions and the key-value cache are its own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.measure import InputError
from orchestrator.tasks.streaming.intervals import StepLedger
from orchestrator.tasks.streaming.layout import TensorPlace, Unit, lay_out
from orchestrator.tasks.streaming.packed import ABSMAX, NESTED_ABSMAX, Unpacker
from orchestrator.tasks.streaming.prefetch import Loaded, Pipeline

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

# Whose parts are model.embed_tokens, model.layers.N, model.norm and lm_head, each called once a
# forward and in this order; every one of them is compared with its resident model by the tests.
ARCHITECTURES = ("llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")

EMBEDDING, NORM, HEAD = "model.embed_tokens", "model.norm", "lm_head"


def build_empty(config: PretrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The model with parameters that hold no memory, and buffers that are real.

    Raises
    ------
    InputError
        If streaming does not know the architecture.
    """
    if config.model_type not in ARCHITECTURES:
        raise InputError(
            f"streaming does not know the architecture {config.model_type!r}",
            where="model",
            fix=f"Known: {', '.join(ARCHITECTURES)}",
        )
    from transformers import AutoModelForCausalLM

    with _parameters_without_memory():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention
        )
    return model.eval()


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Whatever parameter a module is given inside holds no memory; buffers are as they are."""
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        return None if parameter is None else nn.Parameter(parameter.to("meta"))

    hook = register_module_parameter_registration_hook(empty)
    try:
        yield
    finally:
        hook.remove()


def units_of(
    model: PreTrainedModel, places: Mapping[str, TensorPlace], where: str
) -> tuple[Unit, ...]:
    """The model's units in the order its forward needs them.

    Parameters
    ----------
    where : str
        Named where a tensor is missing.

    Raises
    ------
    InputError
        If the files lack a tensor or have it in another shape.
    """
    names = [
        (EMBEDDING, "embedding"),
        *((f"model.layers.{i}", "layer") for i in range(model.config.num_hidden_layers)),
        (NORM, "norm"),
        (HEAD, "head"),
    ]
    return tuple(_unit(model, name, kind, places, where) for name, kind in names)


def _unit(
    model: PreTrainedModel, name: str, kind: str, places: Mapping[str, TensorPlace], where: str
) -> Unit:
    found: dict[str, TensorPlace] = {}
    for leaf, parameter in model.get_submodule(name).named_parameters():
        key = source = f"{name}.{leaf}"
        if kind == "head" and model.config.tie_word_embeddings:
            source = f"{EMBEDDING}.{leaf}"  # tied: the file has it once
        if source not in places:
            raise InputError(f"the weights lack {source}", where=where, fix="Fetch the model again")
        packed = source + ABSMAX in places
        if not packed and places[source].shape != tuple(parameter.shape):
            raise InputError(
                f"{source} has shape {places[source].shape}, its configuration says "
                f"{tuple(parameter.shape)}",
                where=where,
                fix="The files must belong to config.json",
            )
        for suffix in ("", ABSMAX, NESTED_ABSMAX):
            if source + suffix in places:
                found[key + suffix] = places[source + suffix]
    return lay_out(name, kind, found)


class StreamedModel:
    """Calls a model whose weights come and go.

    Parameters
    ----------
    model : PreTrainedModel
        Without weights.
    pipeline : Pipeline
        Gives the units that are not resident; may be exchanged between two calls.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        units: tuple[Unit, ...],
        pipeline: Pipeline,
        unpacker: Unpacker,
        ledger: StepLedger,
    ) -> None:
        self.pipeline = pipeline
        self._model = model
        self._unpacker = unpacker
        self._ledger = ledger
        self._held: Loaded | None = None
        self._forward_from_ns = 0
        self._is_cuda = any(buffer.device.type == "cuda" for buffer in model.buffers())
        self._empty = {unit.name: list(self._parameters(unit)) for unit in units}

    def keep(self, unit: Unit, tensors: dict[str, torch.Tensor]) -> None:
        """Make a unit resident: ``tensors`` are its flat bytes, in memory of their own."""
        self._create(unit, tensors)
        self._time(unit, lambda: None, lambda: None)

    def __call__(self, **inputs: Any) -> Any:
        """The model's own forward."""
        return self._model(**inputs)

    def stream(self, unit: Unit) -> None:
        """Bring ``unit`` in before its module runs, and drop it afterwards."""

        def bring() -> None:
            loaded = self.pipeline.take(unit)
            with self._ledger.foreground("create", unit.name):
                self._create(unit, loaded.tensors)
                if self._is_cuda:
                    _synchronize()
            self._held = loaded

        def drop() -> None:
            with self._ledger.foreground("free", unit.name):
                for owner, leaf, empty in self._empty[unit.name]:
                    owner._parameters[leaf] = empty
                assert self._held is not None
                self.pipeline.release(self._held)
                self._held = None

        self._time(unit, bring, drop)

    def _time(self, unit: Unit, bring: Callable[[], None], drop: Callable[[], None]) -> None:
        """Book the forward of ``unit``, between what is done before it and after it."""
        module = self._model.get_submodule(unit.name)

        def before(_module: nn.Module, _inputs: Any) -> None:
            bring()
            self._forward_from_ns = self._ledger.now_ns()

        def after(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            if self._is_cuda:
                _synchronize()  # the slot is written again as soon as it is released
            self._ledger.add("forward", unit.name, self._forward_from_ns, self._ledger.now_ns())
            drop()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def _parameters(self, unit: Unit) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
        """Module, name and value of each of its parameters."""
        root = self._model.get_submodule(unit.name)
        for path, parameter in root.named_parameters():
            owner_path, _, leaf = path.rpartition(".")
            yield root.get_submodule(owner_path), leaf, parameter

    def _create(self, unit: Unit, tensors: dict[str, torch.Tensor]) -> None:
        from torch import nn

        root = self._model.get_submodule(unit.name)
        for part in unit.parts:
            if part.key.endswith((ABSMAX, NESTED_ABSMAX)):
                continue
            if part.key in self._unpacker:
                weight = self._unpacker.unpack(part.key, tensors)
            else:
                weight = tensors[part.key].view(_dtype(part.place.dtype)).view(part.place.shape)
            owner_path, _, leaf = part.key.removeprefix(unit.name + ".").rpartition(".")
            owner = root.get_submodule(owner_path)
            # As transformers loads them: of a weight without a gradient, the product with the last
            # position of a longer prompt copies the weight first, once for each sequence.
            floats = weight.is_floating_point()
            owner._parameters[leaf] = nn.Parameter(weight, requires_grad=floats)


def _dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _synchronize() -> None:
    import torch

    torch.cuda.current_stream().synchronize()
