"""Brings units into memory in the order the model asks for them: on demand, or ahead of it.

::

    held     every unit of a kind is the first of it, read once      the model alone
    sync     take(unit): read, copy                          the model stands still meanwhile
    async    workers read ahead into free slots, in a ring over the units; take() waits for its
             unit; release() gives its slot back

There are ``depth + 1`` slots: one that the model computes with, ``depth`` ahead of it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from orchestrator.tasks.streaming.buffers import Buffer, Loader
from orchestrator.tasks.streaming.intervals import StepLedger
from orchestrator.tasks.streaming.layout import Unit

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Loaded:
    """A unit in memory: its tensors as bytes, by key, in ``slot``."""

    unit: Unit
    tensors: dict[str, torch.Tensor]
    slot: Buffer


class Pipeline(Protocol):
    """Gives units in the order of the ring, one at a time."""

    def take(self, unit: Unit) -> Loaded:
        """The next unit, which must be ``unit``."""
        ...

    def release(self, loaded: Loaded) -> None:
        """The unit is not needed any more."""
        return None

    def settle(self) -> None:
        """Wait until nothing is under way that was not asked for."""
        return None

    def close(self) -> None:
        """Stop threads; idempotent."""
        return None


class HeldPipeline(Pipeline):
    """Gives weights that are in memory already: what is left of a step is computing.

    Of each kind the first unit stands for all, so that it takes less memory than a layer each.
    """

    def __init__(self, ring: Sequence[Unit], loader: Loader, ledger: StepLedger) -> None:
        self._held: dict[str, Loaded] = {}
        for unit in ring:
            if unit.kind not in self._held:
                slot = loader.new_slot(unit.buffer_bytes)
                tensors = loader.load(unit, slot, ledger.background)
                self._held[unit.kind] = Loaded(unit, tensors, slot)

    def take(self, unit: Unit) -> Loaded:
        held = self._held[unit.kind]
        names = ((part.key, part.key.replace(unit.name, held.unit.name, 1)) for part in unit.parts)
        return Loaded(unit, {key: held.tensors[source] for key, source in names}, held.slot)

    def close(self) -> None:
        self._held.clear()


class SyncPipeline(Pipeline):
    """Reads in the foreground, when asked."""

    def __init__(self, loader: Loader, ledger: StepLedger) -> None:
        self._loader = loader
        self._ledger = ledger
        self._slot = loader.new_slot()

    def take(self, unit: Unit) -> Loaded:
        tensors = self._loader.load(unit, self._slot, self._ledger.foreground)
        return Loaded(unit, tensors, self._slot)

    def release(self, loaded: Loaded) -> None:
        loaded.tensors.clear()


class AsyncPipeline:
    """Reads ahead with ``workers`` threads into ``depth + 1`` slots.

    Parameters
    ----------
    ring : sequence of Unit
        What is asked for, over and over.
    """

    def __init__(
        self, ring: Sequence[Unit], loader: Loader, ledger: StepLedger, *, depth: int, workers: int
    ) -> None:
        self._ring = ring
        self._loader = loader
        self._ledger = ledger
        self._change = threading.Condition()
        self._slots = depth + 1
        self._free = [loader.new_slot() for _ in range(self._slots)]
        self._ready: dict[int, Loaded] = {}
        self._next_read = 0
        self._next_taken = 0
        self._error: BaseException | None = None
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def take(self, unit: Unit) -> Loaded:
        ticket = self._next_taken
        self._next_taken += 1
        expected = self._ring[ticket % len(self._ring)]
        if expected is not unit:
            raise RuntimeError(f"the model asked for {unit.name}, next is {expected.name}")
        with self._ledger.foreground("wait", unit.name), self._change:
            while ticket not in self._ready:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise RuntimeError("the pipeline is closed")
                self._change.wait()
            return self._ready.pop(ticket)

    def release(self, loaded: Loaded) -> None:
        loaded.tensors.clear()
        with self._change:
            self._free.append(loaded.slot)
            self._change.notify_all()

    def settle(self) -> None:
        """Wait until every slot is filled: the threads have nothing to do then."""
        with self._change:
            while len(self._ready) < self._slots and not self._closed and self._error is None:
                self._change.wait()

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        self._ready.clear()
        self._free.clear()

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._free and not self._closed:
                    self._change.wait()
                if self._closed or self._error is not None:
                    return
                # Buffer and ticket together: the earliest unit outstanding always has a slot.
                slot = self._free.pop()
                ticket = self._next_read
                self._next_read += 1
            unit = self._ring[ticket % len(self._ring)]
            try:
                tensors = self._loader.load(unit, slot, self._ledger.background)
            except BaseException as error:
                with self._change:
                    self._error = error
                    self._change.notify_all()
                return
            with self._change:
                self._ready[ticket] = Loaded(unit, tensors, slot)
                self._change.notify_all()
