"""Samples the attempt's GPUs, each by its UUID, from a thread of the supervisor.

Three tiers, by how fast a value moves and what it costs to ask::

    every period (50 ms)    one batch of fields (energy, power, throttle counters), clocks,
                            temperatures, P-state, utilisation, event reasons, memory
    every 4th               processes and their memory
    every 20th              power limit, PCIe link, ECC counters
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.measure.series import SeriesSet
from orchestrator.telemetry.device import Device
from orchestrator.telemetry.gpu_reader import SLOW_EVERY, GpuReader
from orchestrator.telemetry.nvml import (
    NvmlError,
    NvmlSession,
    answered,
    forget_session,
    shared_session,
)
from orchestrator.telemetry.process import belongs_to

OPEN_TIMEOUT_S = 10.0
_SILENT = "NVML does not answer"


class GpuSampler:
    """Reads every GPU of an attempt, round by round; never raises.

    Attributes
    ----------
    absent : dict of uuid to dict of metric to reason
        ``*`` stands for every metric.
    lost, unopened : dict of uuid to reason
        GPUs that stopped answering during the attempt; GPUs that never answered.
    """

    def __init__(
        self,
        uuids: Sequence[str],
        *,
        period_s: float = 0.05,
        session: Callable[[], NvmlSession] = shared_session,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.period_s = period_s
        self.series = SeriesSet(now_ns())
        self.absent: dict[str, dict[str, str]] = {uuid: {} for uuid in uuids}
        self.unopened: dict[str, str] = {}
        self.rounds = 0
        self.spent_s = 0.0
        self._uuids, self._session, self._now_ns = uuids, session, now_ns
        self._readers: list[GpuReader] = []
        self._driver: dict[str, Any] = {}
        self._pid: int | None = None
        self.lost: dict[str, str] = {}

    def open(self, timeout_s: float = OPEN_TIMEOUT_S) -> None:
        """Find every GPU and read what it held before the attempt; a driver may hang doing so."""
        found = answered(self._open, timeout_s)
        if found is None:
            self.unopened = dict.fromkeys(self._uuids, _SILENT)
            return
        self._driver, self._readers, self.unopened = found
        self.absent |= {reader.uuid: reader.absent for reader in self._readers}

    def _open(self) -> tuple[dict[str, Any], list[GpuReader], dict[str, str]]:
        try:
            session = self._session()
        except NvmlError as error:
            return {}, [], dict.fromkeys(self._uuids, error.what)
        driver = {"driver_version": session.driver_version, "nvml_version": session.nvml_version}
        readers, unopened = [], {}
        for uuid in self._uuids:
            try:
                readers.append(GpuReader(session, uuid, self.series))
            except NvmlError as error:
                unopened[uuid] = error.what
        return driver, readers, unopened

    @property
    def devices(self) -> list[Device]:
        """The GPUs that could be opened."""
        return [r.device for r in self._readers]

    def attach(self, pid: int) -> None:
        """Know the measured process."""
        self._pid = pid

    def edge(self) -> None:
        """A round of every tier: the first and the last."""
        self.rounds = -(-self.rounds // SLOW_EVERY) * SLOW_EVERY
        self.tick()

    def tick(self) -> None:
        """One round over every GPU."""
        began, is_ours = time.thread_time_ns(), self._is_ours if self._pid else None
        for reader in self._readers:
            reader.read(self._now_ns(), self.rounds, is_ours)
        self.rounds += 1
        self.spent_s += (time.thread_time_ns() - began) / 1e9

    def close(self, *, hanging: bool = False) -> None:
        """Sampling has ended; ``hanging`` where its thread is stuck in the driver."""
        self.lost = {r.uuid: r.lost for r in self._readers if r.lost is not None}
        if hanging:
            self.series = self.series.snapshot()
            self.lost |= {r.uuid: _SILENT for r in self._readers if r.lost is None}
        for uuid, reason in {**self.unopened, **self.lost}.items():
            self.absent[uuid]["*"] = reason
        if self.unopened or self.lost:
            # A GPU that was reset, or cut into other slices, is only found by asking again.
            forget_session(hanging=hanging or _SILENT in self.unopened.values())

    def facts(self) -> dict[str, Any]:
        """What the attempt's record says about how its GPUs were watched."""
        return {
            **self._driver,
            "nvml_period_s": self.period_s,
            "nvml_rounds": self.rounds,
            "nvml_cost_s": self.spent_s,
            "lost": self.lost,
            "unopened": self.unopened,
            "device_memory_before_bytes": {
                r.uuid: r.memory_before_bytes
                for r in self._readers
                if r.memory_before_bytes is not None
            },
            "gpu_absent": {uuid: dict(reasons) for uuid, reasons in self.absent.items()},
        }

    def _is_ours(self, pid: int) -> bool:
        return self._pid is not None and belongs_to(pid, self._pid)
