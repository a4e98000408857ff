"""What can be asked of ``task=streaming``."""

from __future__ import annotations

from dataclasses import dataclass


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
    batch_size: int = 1
    prompt_tokens: int = 32
    new_tokens: int = 9
    attention: str = "sdpa"
    transfer: str = "async"
    depth: int = 1
    workers: int = 1
    pinned: bool = False
    buffer: str = "single"
    resident_embedding: bool = True
    resident_norm: bool = True
    resident_head: bool = True
    page_cache: str = "dropped"
    direct: bool = True
    budget_bytes: int | None = None
    disk_bytes_per_s: float | None = None
