"""Models with random weights: the speed of an architecture without its download."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.engines.digest import digest_json
from orchestrator.engines.transformers.attention_choice import (
    declares,
    implementation,
    refuse_attention,
)
from orchestrator.errors import nearest, one_line
from orchestrator.measure import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_NO_MODEL = (
    ValueError,
    KeyError,
    TypeError,
    ZeroDivisionError,
    IndexError,
    AssertionError,
    AttributeError,
    RuntimeError,
)
# Part of the weights digest: raise it when the same seed would give other weights.
RANDOM_VERSION = 2
# What our own architectures have, whatever ``model_type`` they are given: some have no use for it.
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
)
_ROPE = {"rope_scaling", "rope_parameters"}
_SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id")


def configuration(architecture: Mapping[str, Any]) -> PretrainedConfig:
    """The transformers configuration of a dict with ``model_type``.

    Raises
    ------
    InputError
        If transformers knows no such model type (the nearest ones are named), refuses a value or
        has no use for one.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    values = copy.deepcopy(dict(architecture))  # transformers writes into nested ones
    model_type = str(values.pop("model_type"))
    if model_type not in CONFIG_MAPPING_NAMES:
        raise InputError(
            f"unknown model_type {model_type!r}",
            where="model.architecture",
            fix=nearest(model_type, CONFIG_MAPPING_NAMES),
        )
    try:
        with _warnings_of("transformers.modeling_rope_utils") as warned:
            config = AutoConfig.for_model(model_type, **values)
        # What it does not know it leaves out. Of defaults, those of a large model, it may say so.
        if warned and _ROPE & values.keys():
            raise ValueError(warned[0])
    except Exception as error:  # its validators raise types of their own
        raise InputError(
            f"{model_type} rejects this configuration: {one_line(error)}",
            where="model.architecture",
        ) from error
    _refuse_unused(config, values)
    _complete(config, values)
    return config


@contextmanager
def _warnings_of(name: str) -> Iterator[list[str]]:
    """What a logger warns of meanwhile."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, listener = logging.getLogger(name), Listener(logging.WARNING)
    logger.addHandler(listener)
    try:
        yield found
    finally:
        logger.removeHandler(listener)


def _refuse_unused(config: PretrainedConfig, values: Mapping[str, Any]) -> None:
    """A word misspelt, or of another family, is kept by transformers and changes nothing."""
    kind, made = type(config), config.to_dict()
    for name in values:
        if name in _SIZES or declares(kind, name):
            continue
        try:
            other = kind(**{k: v for k, v in values.items() if k != name}).to_dict()
        except Exception:  # it needs it
            continue
        rest = {k: v for k, v in made.items() if k != name}
        # Some are read into another field: rope_theta.
        if rest == other:
            raise InputError(
                f"{config.model_type} has no {name}",
                where=f"model.architecture.{name}",
                fix=nearest(name, rest),
            )


def _complete(config: PretrainedConfig, given: Mapping[str, Any]) -> None:
    """Take back defaults that do not fit what was given: those of a large published model.

    A special token past the end of a smaller vocabulary; a width of heads that is left open.
    """
    vocabulary = _of(config, "vocab_size")
    for name in _SPECIAL_IDS:
        value = _of(config, name)
        if name in given or not isinstance(vocabulary, int) or value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if any(isinstance(one, int) and one >= vocabulary for one in ids):
            try:
                setattr(config, name, None)
            except Exception:  # some types want a number
                setattr(config, name, 0)
    hidden, heads = _of(config, "hidden_size"), _of(config, "num_attention_heads")
    if _of(config, "head_dim", 0) is None and isinstance(hidden, int) and isinstance(heads, int):
        config.head_dim = hidden // heads


def _of(config: PretrainedConfig, name: str, absent: Any = None) -> Any:
    """A field; ``absent`` where there is none, or it is another in each layer."""
    try:
        return getattr(config, name, absent)
    except Exception:  # of a type of its own, for what differs by layer
        return absent


def build(config: PretrainedConfig, seed: int, dtype: str, attention: str) -> PreTrainedModel:
    """A causal language model with seeded weights on the CPU.

    Weights are drawn in float32 and rounded to ``dtype`` afterwards, so that one seed means the
    same weights at every precision. Only parameters are rounded: rotary frequencies stay float32,
    as they do in a model that was loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with _drawn_once():
                model = AutoModelForCausalLM.from_config(
                    config,
                    dtype=torch.float32,
                    attn_implementation=implementation(config, attention),
                )
        except _NO_MODEL as error:
            refuse_attention(error, attention, "model.architecture")
            raise InputError(
                f"{config.model_type} cannot be built as a language model: {one_line(error)}",
                where="model.architecture",
            ) from error
    target = getattr(torch, dtype)
    keep = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not keep.intersection(name.split(".")):
            parameter.data = parameter.data.to(target)
    model.config.dtype = target
    return model


@contextmanager
def _drawn_once() -> Iterator[None]:
    """Keep torch from drawing weights that transformers draws once more.

    They are not numbers meanwhile. Had transformers left some out, logits would be none either,
    which the proofs of every attempt find.
    """
    import torch

    def forget(module: torch.nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            torch.nn.init.constant_(parameter, float("nan"))

    kinds: tuple[Any, ...] = (torch.nn.Linear, torch.nn.Embedding)
    own = [kind.reset_parameters for kind in kinds]
    for kind in kinds:
        kind.reset_parameters = forget
    try:
        yield
    finally:
        for kind, method in zip(kinds, own, strict=True):
            kind.reset_parameters = method


def digest(architecture: Mapping[str, Any], seed: int) -> str:
    """Stands for the weights of :func:`build`, which are never written to a file."""
    return digest_json({"random": RANDOM_VERSION, "architecture": dict(architecture), "seed": seed})
