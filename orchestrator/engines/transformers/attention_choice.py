"""Which attention a model is loaded with, and one line where it has not the one asked for."""

from __future__ import annotations

from typing import Any

from orchestrator.measure import Infeasible

# How transformers says that a model lacks one, whichever it is.
_LACKS = ("does not support an attention implementation", "does not support Flash Attention")
NO_ATTENTION = "none: the model has no attention"


def has_attention(config: Any) -> bool:
    """Whether a configuration is of a model with attention heads; state space models have none."""
    text = config.get_text_config(decoder=True)
    if not type(text).__module__.startswith("transformers."):  # code of the model's own
        return True
    return declares(type(text), "num_attention_heads")


def declares(kind: type, name: str) -> bool:
    """Whether a class of configurations has this field, rather than an object of it any value."""
    if name in getattr(kind, "attribute_map", {}):
        return True
    return any(name in vars(each).get("__annotations__", {}) for each in kind.__mro__)


def implementation(config: Any, asked: str) -> str:
    """What to load the model with: ``eager``, which all know, where there is no attention."""
    return asked if has_attention(config) else "eager"


def refuse_attention(error: Exception, asked: str, where: str) -> None:
    """Raise :class:`Infeasible` where ``error`` says that a model lacks this attention."""
    text = str(error)
    if any(lacks in text for lacks in _LACKS):
        raise Infeasible(
            f"{text.split(' does not support')[0].split()[-1]} has no {asked} attention",
            where=where,
            fix="Use eager attention",
        ) from error
