"""What tasks ask of a device's memory: how much there is, and CUDA's history of allocations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.host.memory import usable_bytes
from orchestrator.measure import Recorder


def device_memory_bytes(device_kind: str) -> int | None:
    """All memory of the device: of the first GPU, or of the host as far as its cgroup goes."""
    if device_kind == "cuda":
        import torch

        # None where it reports none of its own: unified memory.
        return int(torch.cuda.get_device_properties(0).total_memory) or None
    return usable_bytes()


@contextmanager
def memory_history(recorder: Recorder) -> Iterator[None]:
    """Leave ``memory_snapshot.pickle`` of the CUDA allocator, also where memory ran out."""
    import torch

    torch.cuda.memory._record_memory_history(max_entries=100_000)
    try:
        yield
    finally:
        file = recorder.artifact("memory_snapshot.pickle")
        torch.cuda.memory._dump_snapshot(str(file))
        torch.cuda.memory._record_memory_history(enabled=None)
