"""One attempt's streaming: store, layout, reader, slots, pipeline and model, opened and closed."""

from __future__ import annotations

from typing import Any

from orchestrator.engines import transformers as loading
from orchestrator.engines.residency import resident_fraction
from orchestrator.engines.transformers.engaged import expected_kind
from orchestrator.measure import Identity, Recorder
from orchestrator.tasks.streaming.bandwidth import DiskProbe
from orchestrator.tasks.streaming.budget import Budget
from orchestrator.tasks.streaming.buffers import Loader
from orchestrator.tasks.streaming.intervals import StepLedger
from orchestrator.tasks.streaming.layout import PAGE_BYTES, Unit, largest_bytes
from orchestrator.tasks.streaming.options import StreamingConfig
from orchestrator.tasks.streaming.packed import ABSMAX, NESTED_ABSMAX, Unpacker
from orchestrator.tasks.streaming.prefetch import (
    AsyncPipeline,
    HeldPipeline,
    Pipeline,
    SyncPipeline,
)
from orchestrator.tasks.streaming.reader import Reader, Throttle
from orchestrator.tasks.streaming.runner import StreamedModel, build_empty, units_of
from orchestrator.tasks.streaming.unit_files import open_store

# The page cache is dropped page by page: each read may leave one at either end, and the kernel's
# readahead a little beyond.
_READAHEAD_BYTES = 4 << 20
_LEFT_OVER = 0.1


class StreamingSession:
    """Everything that streams one model.

    Attributes
    ----------
    units, ring : tuple of Unit
        All of the model; those that are read again each step.
    weights_bytes, step_bytes : int
        Bytes of the whole model on disk; bytes read for one forward.
    """

    def __init__(
        self,
        prepared: loading.Prepared,
        identity: Identity,
        options: StreamingConfig,
        recorder: Recorder,
    ) -> None:
        import torch

        self.config = prepared.config
        self.device = loading.torch_device(identity["device"])
        self.ledger = StepLedger(recorder.clock)
        self._options = options
        self._identity = identity
        dtype = getattr(torch, identity["quant"]["dtype"])
        self._model = build_empty(prepared.config, dtype, options.attention)
        for module in self._model.modules():
            for name, buffer in list(module._buffers.items()):
                module._buffers[name] = None if buffer is None else buffer.to(self.device)
        with recorder.phase("store", measured=False):
            store = open_store(prepared, identity)
        where = str(store.directory or prepared.directory)
        self.units = units_of(self._model, store.places, where)
        kept = {
            "embedding": options.resident_embedding,
            "norm": options.resident_norm,
            "head": options.resident_head,
        }
        self._resident = tuple(unit for unit in self.units if kept.get(unit.kind, False))
        self.ring = tuple(unit for unit in self.units if unit not in self._resident)
        self.files = sorted({e.file for unit in self.units for e in unit.extents})
        throttle = Throttle(options.disk_bytes_per_s) if options.disk_bytes_per_s else None
        warm = options.page_cache == "warm"
        self.reader = Reader(self.files, cached=warm, direct=options.direct, throttle=throttle)
        # However this trial reads: what the disk could give is the same for all of them.
        self._best_reader = Reader(self.files, cached=warm, direct=not warm, throttle=throttle)
        self.disk = DiskProbe(self.ring, self._best_reader)
        self._unpacker = Unpacker(store.directory, self.device, dtype)
        self.loader = Loader(
            self.reader,
            self.device,
            capacity_bytes=largest_bytes(self.ring),
            single=options.buffer == "single",
            pinned=options.pinned,
        )
        self.settle_page_cache()
        recorder.fact("streamed_from", "cache" if store.directory else "checkpoint")
        loading.release_free_memory()
        self.budget = Budget(options.budget_bytes, self.device)
        self.budget.expect(self._needed_bytes(), self.units)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the model on disk; a tied head's once."""
        return sum({e: e.nbytes for unit in self.units for e in unit.extents}.values())

    @property
    def step_bytes(self) -> int:
        """Bytes that one forward reads."""
        return sum(unit.read_bytes for unit in self.ring)

    def stage_bytes(self) -> dict[str, int]:
        """Bytes of one forward that go through each stage there is."""
        stages = ["disk"]
        if self.device.type == "cuda":
            stages.append("h2d")
            if self._options.pinned and self._options.buffer == "tensor":
                stages.append("pin")  # a single pinned buffer is read into as it is
        return dict.fromkeys(stages, self.step_bytes)

    def load(self) -> None:
        """Read what stays in memory, allocate the slots, begin to read ahead."""
        self.pipeline: Pipeline = self._pipeline()
        self.streamed = StreamedModel(
            self._model, self.units, self.pipeline, self._unpacker, self.ledger
        )
        held: dict[Any, Any] = {}
        for unit in self._resident:
            if unit.kind == "head" and unit.extents[0] in held:
                (part,) = unit.parts  # tied: the embedding's own memory
                tensors = {part.key: held[unit.extents[0]]}
            else:
                # Memory of its own, that no slot will overwrite.
                slot = self.loader.new_slot(unit.buffer_bytes)
                tensors = self.loader.load(unit, slot, self.ledger.background)
                if unit.kind == "embedding":
                    held[unit.extents[0]] = tensors[unit.parts[0].key]
            self.streamed.keep(unit, tensors)
        for unit in self.ring:
            self.streamed.stream(unit)

    def prove(self, recorder: Recorder) -> None:
        """Weights, attention and threads are as asked; ``Mismatch`` where they are not."""
        import torch

        asked = expected_kind(self._identity["quant"])
        kinds = {
            self._kind(unit, part.key, part.place.dtype)
            for unit in self.units
            if unit.kind == "layer"
            for part in unit.parts
            if len(part.place.shape) == 2
        }
        reads = "direct" if self._options.direct else "page cache"
        refused = f" ({self.reader.refusal})" if self.reader.refusal else ""
        # Where direct reads are refused the trial is measured as it can be, and says so.
        recorder.engaged("reads", reads, f"{self.reader.mode}{refused}", ok=True)
        recorder.engaged("weights", asked, ", ".join(sorted(kinds)))
        attention = self._options.attention
        recorder.engaged("attention", attention, self.config._attn_implementation)
        threads = loading.thread_count(self._identity["device"])
        recorder.engaged("threads", threads, torch.get_num_threads())

    def busy_s(self) -> dict[str, float]:
        """Seconds of the last sequence's decode in which each stage was busy."""
        stages = {"disk": ("disk_read",), "compute": ("create", "forward", "free")}
        if self.device.type == "cuda":
            stages["h2d"] = ("pin", "h2d")
        return {stage: self.ledger.busy_s(*parts) for stage, parts in stages.items()}

    def settle_page_cache(self) -> None:
        """Bring the files into the page cache, or out of it, as asked."""
        if self._options.page_cache == "warm":
            if (resident_fraction(self.files) or 0.0) < 1.0:
                self.reader.fill_cache()
        else:
            self.reader.drop_cache()

    def check_page_cache(self, recorder: Recorder) -> None:
        """After a sequence: the files are as much in the page cache as asked, or ``Mismatch``."""
        fraction = resident_fraction(self.files)
        if fraction is None:
            return  # the kernel does not tell about files of others
        total = sum(file.stat().st_size for file in self.files)
        extents = sum(len(unit.extents) for unit in self.units)
        allowed = _LEFT_OVER * total + 2 * PAGE_BYTES * extents + _READAHEAD_BYTES
        warm = self._options.page_cache == "warm"
        good = fraction >= 1 - _LEFT_OVER if warm else fraction * total <= allowed
        if not good:
            recorder.engaged(
                "page cache", self._options.page_cache, f"{fraction:.0%} resident", ok=False
            )

    def close(self) -> None:
        """Stop threads, close files; idempotent."""
        if hasattr(self, "pipeline"):
            self.pipeline.close()
        self.reader.close()
        self._best_reader.close()

    def read_on_demand(self) -> None:
        """From now on nothing is read ahead."""
        self.pipeline.close()
        self.pipeline = self.streamed.pipeline = SyncPipeline(self.loader, self.ledger)

    def hold_weights(self) -> None:
        """From now on the weights are in memory: steps are computing alone, of no use otherwise."""
        self.pipeline.close()
        self.budget.end()
        self.pipeline = self.streamed.pipeline = HeldPipeline(self.ring, self.loader, self.ledger)

    def _pipeline(self) -> Pipeline:
        if self._options.transfer == "sync":
            return SyncPipeline(self.loader, self.ledger)
        return AsyncPipeline(
            self.ring,
            self.loader,
            self.ledger,
            depth=self._options.depth,
            workers=self._options.workers,
        )

    def _needed_bytes(self) -> int:
        slots = 1 if self._options.transfer == "sync" else self._options.depth + 1
        extents = {extent for unit in self._resident for extent in unit.extents}
        needed = sum(extent.nbytes for extent in extents)
        needed += slots * largest_bytes(self.ring)
        if self._unpacker.scheme:  # one layer at a time lies there unpacked
            layer = next(unit for unit in self.ring if unit.kind == "layer")
            parameters = self._model.get_submodule(layer.name).parameters()
            needed += sum(p.numel() * p.element_size() for p in parameters)
        return needed

    def _kind(self, unit: Unit, key: str, dtype: str) -> str:
        keys = {part.key for part in unit.parts}
        if key + ABSMAX in keys:
            double = "+double" if key + NESTED_ABSMAX in keys else ""
            return f"{self._unpacker.scheme}{double}"
        return dtype
