"""What runs in the measured process where no task of the product does it; installed as a task."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from orchestrator.measure import CudaClock, CudaMemory, Identity, Recorder, Task, timed, tracker
from orchestrator.measure.clock import Nvtx
from orchestrator.measure.registry import find_task

_MIB = 1 << 20


@dataclass
class ProbeConfig:
    """Which function to run, and what with."""

    name: str = "gpu_probe"
    probe: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def run(identity: Identity, recorder: Recorder) -> None:
    """Run the probe that is asked for."""
    PROBES[identity["task"]["probe"]](identity, recorder, **identity["task"]["options"])


def visible(identity: Identity, recorder: Recorder, uuid: str) -> None:
    """The one GPU this process sees is the one whose UUID it was given."""
    import torch

    seen = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    # CUDA gives a MIG slice the UUID of its GPU, or one without the prefix.
    same = len(seen) == 1 and (seen[0] in uuid or uuid.startswith("MIG-"))
    recorder.engaged("CUDA's device", uuid, ", ".join(seen), ok=same)


def clock(identity: Identity, recorder: Recorder, size: int, count: int) -> None:
    """Marks inside a region against the wall time of all of it."""
    import torch

    clock, kind = recorder.clock, identity["device"]["kind"]
    recorder.engaged("marks", "events" if kind == "cuda" else "times", _marks(clock))
    a = torch.ones(size, size, device=kind)
    for _ in range(3):  # the library's own start-up belongs to no interval
        a @ a
    with recorder.phase("decode"), timed(clock) as span:
        begin_ns = clock.now_ns()
        marks = [clock.mark()]
        for _ in range(count):
            a @ a
            marks.append(clock.mark())
        host_s = (clock.now_ns() - begin_ns) / 1e9
        intervals_s = clock.seconds_between(marks)
    recorder.samples("interval_s", "s", intervals_s)
    recorder.value("wall_s", "s", span.seconds)
    recorder.value("host_s", "s", host_s)


def _marks(clock: object) -> str:
    return "events" if isinstance(clock, CudaClock) else "times"


def allocator(identity: Identity, recorder: Recorder) -> None:
    """The allocator's peak is that of its phase: it knows a block that is gone, until reset."""
    import torch

    memory = tracker("cuda")
    assert isinstance(memory, CudaMemory)
    held = memory.held_bytes()
    memory.reset()
    block = torch.empty(64 * _MIB, dtype=torch.uint8, device="cuda")
    recorder.value("held_bytes", "bytes", memory.held_bytes() - held)
    del block
    recorder.value("peak_bytes", "bytes", memory.peak_bytes() - held)
    memory.reset()
    recorder.value("peak_after_reset_bytes", "bytes", memory.peak_bytes() - held)


def logits(identity: Identity, recorder: Recorder, prompt_tokens: int) -> None:
    """The same model in float32 on the CPU and on the GPU."""
    import torch

    from orchestrator.engines import transformers as loading
    from orchestrator.engines.transformers import tokens

    prepared = loading.prepare(identity, recorder)
    prompt = tokens.prompt(prepared, identity["seed"], 1, prompt_tokens)
    found = {}
    for kind in ("cpu", "cuda"):
        device = {**identity["device"], "kind": kind}
        model = loading.load_unmeasured(prepared, identity["quant"], device, identity["seed"])
        with torch.inference_mode():
            found[kind] = model(input_ids=prompt.to(model.device)).logits.float().cpu()
    difference = (found["cuda"] - found["cpu"]).abs().max() / found["cpu"].abs().max()
    recorder.value("largest_relative_difference", "1", float(difference))


def busy(identity: Identity, recorder: Recorder, seconds: float) -> None:
    """Keep the GPU busy with nothing but products, as decode."""
    import torch

    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    torch.cuda.synchronize()
    with recorder.phase("decode"):
        end_ns = recorder.clock.now_ns() + int(seconds * 1e9)
        while recorder.clock.now_ns() < end_ns:
            for _ in range(50):
                a @ a
            torch.cuda.synchronize()


class _Counting:
    """``torch.cuda.nvtx``, which nobody could ask what was pushed."""

    def __init__(self, nvtx: Nvtx) -> None:
        self._nvtx = nvtx
        self.names: list[str] = []
        self.open = 0

    def range_push(self, msg: str) -> object:
        self.names.append(msg)
        self.open += 1
        return self._nvtx.range_push(msg)

    def range_pop(self) -> object:
        self.open -= 1
        return self._nvtx.range_pop()


def ranges(identity: Identity, recorder: Recorder) -> None:
    """Each phase of ``task=inference`` is a range, and each that was pushed is popped."""
    counting = _Counting(recorder.clock.nvtx) if recorder.clock.nvtx else None
    recorder.engaged("NVTX", True, counting is not None)
    assert counting is not None
    recorder.clock.nvtx = counting
    options = {"name": "inference", "prompt_tokens": 16, "new_tokens": 4}
    task = find_task("inference")
    task.run({**identity, "task": options}, recorder)
    try:
        with recorder.phase("load"):
            raise MemoryError
    except MemoryError:
        pass
    recorder.engaged("ranges left open", 0, counting.open)
    recorder.fact("ranges", dict(Counter(counting.names)))


PROBES = {
    function.__name__: function for function in (visible, clock, allocator, logits, busy, ranges)
}
TASK = Task(name="gpu_probe", config=ProbeConfig, run=run)
