"""What can be asked of ``task=training``."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.engines.transformers.feasible import ATTENTIONS
from orchestrator.measure.options import bounded, choice


@dataclass
class TrainingConfig:
    """Options of ``task=training``.

    Attributes
    ----------
    batch_size, context_tokens : int
        Sequences of one step, and tokens in each: random ids.
    accumulation : int
        Micro-batches that a step's sequences are split into.
    attention : str
        ``sdpa``, ``eager``, ``flash_attention_2`` or ``flex_attention``.
    autocast : str
        ``none`` or ``bfloat16``: what products are computed in, over float32 parameters.
    compile : bool
        Run the model through ``torch.compile``.
    compile_scope : str
        ``layer``: one graph, made once, for every decoder layer, and eager outside of them;
        ``model``: all of it as one graph, which takes some three times as long to make.
    checkpointing : bool
        Keep only the input of each layer and compute the rest again in the backward pass.
    optimizer : bool
        AdamW after each backward pass; without it gradients are let go.
    memory_snapshot : bool
        Afterwards record every allocation of one more step (CUDA) as ``memory_snapshot.pickle``.
    """

    name: str = "training"
    batch_size: int = bounded(4, low=1)
    # One token has no next one to predict.
    context_tokens: int = bounded(256, low=2)
    accumulation: int = bounded(1, low=1)
    attention: str = choice(*ATTENTIONS)
    autocast: str = choice("none", "bfloat16")
    compile: bool = False
    compile_scope: str = choice("layer", "model", only={"compile": True})
    checkpointing: bool = False
    optimizer: bool = True
    memory_snapshot: bool = False
