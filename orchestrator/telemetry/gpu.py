"""Samples the attempt's GPUs through NVML, each by its UUID, from a thread of the supervisor.

Three tiers, by how fast a value moves and what it costs to ask::

    every period (50 ms)    one batch of fields (energy, power, throttle counters), clocks,
                            temperatures, P-state, utilisation, event reasons, memory
    every 4th               processes and their memory
    every 20th              power limit, PCIe link, ECC counters

What a GPU does not support is asked once, and its reason kept. A MIG slice is read where it can be
told apart (memory, processes); clocks and throttling are its parent's; energy and power of a slice
do not exist.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.telemetry.device import Device, describe
from orchestrator.telemetry.nvml import (
    Kind,
    NvmlError,
    Session,
    shared_session,
    throttle_field_ids,
)
from orchestrator.telemetry.process import ProcessSplit, in_host_namespace, split
from orchestrator.telemetry.series import SeriesSet

PROCESSES_EVERY = 4
SLOW_EVERY = 20
_FINAL = (Kind.UNSUPPORTED, Kind.FORBIDDEN, Kind.DEFECT, Kind.UNKNOWN_DEVICE)

Probe = Callable[[], float]


class GpuReader:
    """Reads one GPU or MIG slice; knows what it cannot tell and whether it is lost."""

    def __init__(self, session: Session, uuid: str, series: SeriesSet) -> None:
        self.uuid = uuid
        self.absent: dict[str, str] = {}
        self.lost: str | None = None
        self._session, self._series = session, series
        self._handle = session.handle(uuid)
        self.device: Device = describe(session, self._handle)
        parent = self.device.parent_uuid
        mig = parent is not None
        self._board = self._handle if parent is None else session.handle(parent)
        self._fast: dict[str, tuple[str, Probe]] = {}
        self._slow: dict[str, tuple[str, Probe]] = {}
        self._fields: dict[str, tuple[str, int, float, bool]] = {}
        self._prepare(mig)
        self.baseline = frozenset(self._pids() or ())
        self.memory_before_bytes = self._first("device_memory_bytes")

    def read(self, now: int, round_number: int, is_ours: Callable[[int], bool] | None) -> None:
        """One round; everything it learns goes into the series, every refusal into ``absent``."""
        if self.lost is not None:
            return
        try:
            self._read_fields(now)
            self._read_probes(now, self._fast)
            if is_ours is not None and round_number % PROCESSES_EVERY == 0:
                self._read_processes(now, is_ours)
            if round_number % SLOW_EVERY == 0:
                self._read_probes(now, self._slow)
        except NvmlError as error:
            if error.kind in (Kind.LOST, Kind.UNAVAILABLE):
                self.lost = error.what

    def _prepare(self, mig: bool) -> None:
        nvml, board, own = self._session.pynvml, self._board, self._handle
        call = self._session.call

        def probe(function: str, *arguments: Any, scale: float = 1.0) -> Probe:
            return lambda: call(function, *arguments) * scale

        clock = "nvmlDeviceGetClockInfo"
        self._fast = {
            "sm_clock_hz": ("Hz", probe(clock, board, nvml.NVML_CLOCK_SM, scale=1e6)),
            "memory_clock_hz": ("Hz", probe(clock, board, nvml.NVML_CLOCK_MEM, scale=1e6)),
            "temperature_c": ("°C", probe("nvmlDeviceGetTemperature", board, 0)),
            "pstate": ("1", probe("nvmlDeviceGetPerformanceState", board)),
            "clocks_event_reasons": ("1", self._reasons),
            "device_memory_bytes": ("bytes", lambda: float(self._memory(own).used)),
        }
        if mig:
            reason = f"MIG slices of {self.device.parent_uuid} share it"
            absent = ("energy_j", "power_w", "power_average_w", "gpu_utilization")
            self.absent |= dict.fromkeys((*absent, "memory_utilization"), reason)
        else:
            rates = "nvmlDeviceGetUtilizationRates"
            self._fast["gpu_utilization"] = ("1", lambda: call(rates, board).gpu / 100)
            self._fast["memory_utilization"] = ("1", lambda: call(rates, board).memory / 100)
        self._slow = {
            "power_limit_w": ("W", probe("nvmlDeviceGetEnforcedPowerLimit", board, scale=1e-3)),
            "pcie_generation": ("1", probe("nvmlDeviceGetCurrPcieLinkGeneration", board)),
            "pcie_width": ("1", probe("nvmlDeviceGetCurrPcieLinkWidth", board)),
            "ecc_corrected": ("1", probe("nvmlDeviceGetTotalEccErrors", board, 0, 0)),
            "ecc_uncorrected": ("1", probe("nvmlDeviceGetTotalEccErrors", board, 1, 0)),
            "sm_clock_allowed_hz": ("Hz", self._allowed_clock_hz),
        }
        self._prepare_fields(mig)

    def _prepare_fields(self, mig: bool) -> None:
        nvml, call, board = self._session.pynvml, self._session.call, self._board
        wanted = {"memory_temperature_c": ("°C", nvml.NVML_FI_DEV_MEMORY_TEMP, 1.0, False)}
        if not mig:
            wanted |= {
                "energy_j": ("J", nvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 1e-3, True),
                "power_w": ("W", nvml.NVML_FI_DEV_POWER_INSTANT, 1e-3, False),
                "power_average_w": ("W", nvml.NVML_FI_DEV_POWER_AVERAGE, 1e-3, False),
            }
        ids = throttle_field_ids(self._session.driver_version, nvml)
        wanted |= {name: ("s", number, 1e-9, True) for name, number in ids.items()}
        self._fields = wanted
        self._read_fields(time.perf_counter_ns())
        fallback: dict[str, Probe] = {}
        if "energy_j" in wanted and "energy_j" not in self._fields:
            function = "nvmlDeviceGetTotalEnergyConsumption"
            fallback["energy_j"] = lambda: call(function, board) * 1e-3
        if "power_w" in wanted and "power_w" not in self._fields:
            # nvmlDeviceGetPowerUsage is instantaneous up to GA100 and a 1 s average after it.
            capability = self.device.compute_capability or ""
            instant = tuple(map(int, capability.split("."))) <= (8, 0) if capability else False
            name = "power_w" if instant else "power_average_w"
            if name not in self._fields:
                fallback[name] = lambda: call("nvmlDeviceGetPowerUsage", board) * 1e-3
        for metric, policy in (("throttle_power_cap_s", 0), ("throttle_thermal_policy_s", 1)):
            if metric in wanted and metric not in self._fields:
                fallback[metric] = lambda p=policy: (  # type: ignore[misc]
                    call("nvmlDeviceGetViolationStatus", board, p).violationTime * 1e-9
                )
        for metric, probe in fallback.items():
            unit = wanted[metric][0]
            self._fast[metric] = (unit, probe)

    def _read_fields(self, now: int) -> None:
        if not self._fields:
            return
        ids = [number for _, number, _, _ in self._fields.values()]
        try:
            answers = self._session.fields(self._board, ids)
        except NvmlError as error:
            if error.kind in _FINAL:
                self.absent |= dict.fromkeys(self._fields, error.what)
                self._fields = {}
                return
            raise
        for (metric, (unit, _, scale, counter)), answer in zip(
            list(self._fields.items()), answers, strict=True
        ):
            if answer.value is not None:
                value = answer.value * scale
                self._series.add(self.uuid, metric, unit, now, value, counter=counter)
            elif answer.kind is Kind.LOST:
                raise NvmlError(str(answer.reason), kind=Kind.LOST)
            elif answer.kind in _FINAL:
                self.absent[metric] = str(answer.reason)
                del self._fields[metric]

    def _read_probes(self, now: int, probes: dict[str, tuple[str, Probe]]) -> None:
        for metric, (unit, probe) in list(probes.items()):
            try:
                value = probe()
            except NvmlError as error:
                if error.kind in _FINAL:
                    self.absent[metric] = error.what
                    del probes[metric]
                    continue
                if error.kind is Kind.TRANSIENT:
                    self.absent.setdefault(metric, error.what)
                    continue
                raise
            self.absent.pop(metric, None)
            counter = metric in _COUNTERS
            self._series.add(self.uuid, metric, unit, now, value, counter=counter)

    def _read_processes(self, now: int, is_ours: Callable[[int], bool]) -> None:
        try:
            found = self._session.processes(self._handle)
        except NvmlError as error:
            if error.kind in (Kind.LOST, Kind.UNAVAILABLE):
                raise
            for metric in ("process_memory_bytes", "foreign_processes", "display_processes"):
                self.absent[metric] = error.what
            return
        shares: ProcessSplit = split(
            found, is_ours, host_namespace=in_host_namespace(), baseline=self.baseline
        )
        add = self._series.add
        add(self.uuid, "foreign_processes", "1", now, shares.foreign)
        add(self.uuid, "display_processes", "1", now, shares.display)
        if shares.own_bytes is not None:
            add(self.uuid, "process_memory_bytes", "bytes", now, shares.own_bytes)
        elif shares.reason is not None:
            self.absent["process_memory_bytes"] = shares.reason

    def _reasons(self) -> float:
        try:
            found = self._session.call("nvmlDeviceGetCurrentClocksEventReasons", self._board)
        except NvmlError as error:
            if error.kind is not Kind.UNSUPPORTED:
                raise
            # Drivers before 535 know it by its older name only.
            found = self._session.call("nvmlDeviceGetCurrentClocksThrottleReasons", self._board)
        return float(found)

    def _memory(self, handle: Any) -> Any:
        version = self._session.pynvml.nvmlMemory_v2
        try:
            return self._session.call("nvmlDeviceGetMemoryInfo", handle, version)
        except NvmlError as error:
            if error.kind is not Kind.UNSUPPORTED:
                raise
            # Before driver 510: "used" then includes what the driver reserves for itself.
            return self._session.call("nvmlDeviceGetMemoryInfo", handle)

    def _allowed_clock_hz(self) -> float:
        nvml, ask = self._session.pynvml, self._session.ask
        target = ask(
            "nvmlDeviceGetClock",
            self._board,
            nvml.NVML_CLOCK_SM,
            nvml.NVML_CLOCK_ID_APP_CLOCK_TARGET,
            default=0,
        )
        if target:
            return float(target) * 1e6
        maximum = self._session.call("nvmlDeviceGetMaxClockInfo", self._board, nvml.NVML_CLOCK_SM)
        return float(maximum) * 1e6

    def _pids(self) -> list[int] | None:
        try:
            return [p.pid for p in self._session.processes(self._handle)]
        except NvmlError:
            return None

    def _first(self, metric: str) -> float | None:
        try:
            return self._fast[metric][1]()
        except NvmlError:
            return None


_COUNTERS = frozenset(
    {
        "energy_j",
        "throttle_power_cap_s",
        "throttle_thermal_policy_s",
        "ecc_corrected",
        "ecc_uncorrected",
    }
)


class GpuSampler:
    """Reads every GPU of an attempt, round by round; never raises.

    Attributes
    ----------
    absent : dict of uuid to dict of metric to reason
    devices : list of Device
        Those that could be opened.
    """

    def __init__(
        self,
        uuids: Sequence[str],
        *,
        period_s: float = 0.05,
        session: Callable[[], Session] = shared_session,
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
        self._abandoned = False

    def open(self) -> None:
        """Find every GPU and read what it held before the attempt."""
        try:
            session = self._session()
        except NvmlError as error:
            self.unopened = dict.fromkeys(self._uuids, error.what)
            return
        self._driver = {
            "driver_version": session.driver_version,
            "nvml_version": session.nvml_version,
        }
        for uuid in self._uuids:
            try:
                reader = GpuReader(session, uuid, self.series)
            except NvmlError as error:
                self.unopened[uuid] = error.what
                continue
            self._readers.append(reader)
            self.absent[uuid] = reader.absent

    @property
    def devices(self) -> list[Device]:
        """The GPUs that could be opened."""
        return [r.device for r in self._readers]

    def attach(self, pid: int) -> None:
        """Know the measured process, and read everything once."""
        self._pid = pid
        self.tick()

    def tick(self) -> None:
        """One round over every GPU."""
        began, is_ours = time.thread_time_ns(), self._is_ours if self._pid else None
        for reader in self._readers:
            reader.read(self._now_ns(), self.rounds, is_ours)
        self.rounds += 1
        self.spent_s += (time.thread_time_ns() - began) / 1e9

    def close(self, *, abandon: bool = False) -> None:
        """A last round, unless one hangs in the driver (``abandon``) and must be left alone."""
        self._abandoned = abandon
        if not abandon:
            self.rounds = -(-self.rounds // SLOW_EVERY) * SLOW_EVERY
            self.tick()
        for reader in self._readers:
            if reader.lost is not None:
                for metric in ("energy_j", "power_w", "sm_clock_hz", "clocks_event_reasons"):
                    reader.absent.setdefault(metric, reader.lost)
        for uuid, reason in self.unopened.items():
            self.absent[uuid]["*"] = reason

    def facts(self) -> dict[str, Any]:
        """What the attempt's record says about how its GPUs were watched."""
        lost = {r.uuid: r.lost for r in self._readers if r.lost is not None} | self.unopened
        if self._abandoned:
            lost |= {u: "NVML does not answer" for u in self._uuids if u not in lost}
        return {
            **self._driver,
            "nvml_period_s": self.period_s,
            "nvml_rounds": self.rounds,
            "nvml_cost_s": self.spent_s,
            "lost": lost,
            "device_memory_before_bytes": {
                r.uuid: r.memory_before_bytes
                for r in self._readers
                if r.memory_before_bytes is not None
            },
            "gpu_absent": {uuid: dict(reasons) for uuid, reasons in self.absent.items()},
        }

    def _is_ours(self, pid: int) -> bool:
        # The measured process leads a process group of its own.
        try:
            return pid == self._pid or os.getpgid(pid) == self._pid
        except (ProcessLookupError, PermissionError):
            return False
