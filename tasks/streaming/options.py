"""What can be asked of ``task=streaming``."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.engines.transformers.feasible import ATTENTIONS
from orchestrator.measure.options import bounded, choice


@dataclass
class StreamingConfig:
    """Options of ``task=streaming``. The weights' format is ``quant``: none, nf4 or fp4.

    Attributes
    ----------
    batch_size, prompt_tokens, new_tokens : int
        As in ``task=inference``; ``new_tokens - 1`` decode steps read the whole model each.
    attention : str
        ``sdpa``, ``eager``, ``flash_attention_2`` or ``flex_attention``.
    transfer : str
        ``sync``: read when needed. ``async``: read ahead in the background.
    depth, workers : int
        Units read ahead, and threads that read them; for ``async``.
    pinned : bool
        Page-locked host memory; CUDA only.
    buffer : str
        ``tensor``: new memory for every tensor. ``single``: one buffer a slot, used again.
    resident_embedding, resident_norm, resident_head : bool
        Stay in memory instead of being read each step.
    page_cache : str
        ``warm``: files in the page cache beforehand. ``dropped``: every read comes from the disk.
    direct : bool
        Read past the page cache, which costs the processor next to nothing; where the file system
        refuses, the attempt's ``reads`` says so.
    budget_bytes : int or None
        Most memory over what the process held before; more is ``oom_host`` or ``oom_device``.
    disk_bytes_per_s : float or None
        Slow the disk down to this.
    """

    name: str = "streaming"
    batch_size: int = bounded(1, low=1)
    prompt_tokens: int = bounded(32, low=1)
    # A single new token has no decode step.
    new_tokens: int = bounded(9, low=2)
    attention: str = choice(*ATTENTIONS)
    transfer: str = choice("sync", "async", default="async")
    depth: int = bounded(1, low=1, only={"transfer": "async"})
    workers: int = bounded(1, low=1, only={"transfer": "async"})
    pinned: bool = False
    buffer: str = choice("tensor", "single", default="single")
    resident_embedding: bool = True
    resident_norm: bool = True
    resident_head: bool = True
    page_cache: str = choice("warm", "dropped", default="dropped")
    direct: bool = True
    budget_bytes: int | None = bounded(None, low=1)
    disk_bytes_per_s: float | None = bounded(None, low=1)
