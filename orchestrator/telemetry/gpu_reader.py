"""Reads one GPU, or one MIG slice, through NVML: what it tells, and why it does not tell the rest.

What a GPU does not support is asked once, and its reason kept. A MIG slice is read where it can be
told apart (memory, processes); clocks and throttling are its parent's; energy and power of a slice
do not exist.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from orchestrator.measure.series import SeriesSet
from orchestrator.telemetry.device import Device, describe
from orchestrator.telemetry.nvml import Kind, NvmlError, NvmlSession, throttle_field_ids
from orchestrator.telemetry.process import ProcessSplit, in_host_namespace, split

PROCESSES_EVERY = 4
SLOW_EVERY = 20
_FINAL = (Kind.UNSUPPORTED, Kind.FORBIDDEN, Kind.DEFECT, Kind.UNKNOWN_DEVICE)

Probe = Callable[[], float]


class GpuReader:
    """Reads one GPU or MIG slice; knows what it cannot tell and whether it is lost."""

    def __init__(self, session: NvmlSession, uuid: str, series: SeriesSet) -> None:
        self.uuid = uuid
        self.absent: dict[str, str] = {}
        self.lost: str | None = None
        self._session, self._series = session, series
        self._memory_utilization = 0.0
        self._handle = session.handle(uuid)
        self.device: Device = describe(session, self._handle)
        parent = self.device.parent_uuid
        mig = parent is not None
        self._board = self._handle if parent is None else session.handle(parent)
        self._fast: dict[str, Probe] = {}
        self._slow: dict[str, Probe] = {}
        self._fields: dict[str, tuple[int, float]] = {}
        self._prepare(mig)
        self.baseline: frozenset[int] = frozenset()
        self.memory_before_bytes: float | None = None
        with contextlib.suppress(NvmlError):
            self.baseline = frozenset(p.pid for p in session.processes(self._handle))
        with contextlib.suppress(NvmlError):
            self.memory_before_bytes = float(session.left_bytes(self._handle))

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
        nvml, board, own, probe = self._session.pynvml, self._board, self._handle, self._probe
        clock = "nvmlDeviceGetClockInfo"
        self._fast = {
            "sm_clock_hz": probe(clock, board, nvml.NVML_CLOCK_SM, scale=1e6),
            "memory_clock_hz": probe(clock, board, nvml.NVML_CLOCK_MEM, scale=1e6),
            "temperature_c": probe("nvmlDeviceGetTemperature", board, 0),
            "pstate": probe("nvmlDeviceGetPerformanceState", board),
            "clocks_event_reasons": self._reasons,
            "device_memory_bytes": lambda: float(self._session.used_bytes(own)),
        }
        if mig:
            reason = f"MIG slices of {self.device.parent_uuid} share it"
            self.absent |= dict.fromkeys(_SHARED_BY_SLICES, reason)
        else:
            self._fast["gpu_utilization"] = self._utilization
        self._slow = {
            "power_limit_w": probe("nvmlDeviceGetEnforcedPowerLimit", board, scale=1e-3),
            "pcie_generation": probe("nvmlDeviceGetCurrPcieLinkGeneration", board),
            "pcie_width": probe("nvmlDeviceGetCurrPcieLinkWidth", board),
            "ecc_corrected": probe("nvmlDeviceGetTotalEccErrors", board, 0, 0),
            "ecc_uncorrected": probe("nvmlDeviceGetTotalEccErrors", board, 1, 0),
            "sm_clock_allowed_hz": self._allowed_clock_hz,
        }
        if mig:
            del self._slow["power_limit_w"]
        self._prepare_fields(mig)

    def _prepare_fields(self, mig: bool) -> None:
        nvml, call, board = self._session.pynvml, self._session.call, self._board
        wanted = {"memory_temperature_c": (nvml.NVML_FI_DEV_MEMORY_TEMP, 1.0)}
        if not mig:
            wanted |= {
                "energy_j": (nvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 1e-3),
                "power_w": (nvml.NVML_FI_DEV_POWER_INSTANT, 1e-3),
                "power_average_w": (nvml.NVML_FI_DEV_POWER_AVERAGE, 1e-3),
            }
        ids = throttle_field_ids(self._session.driver_version, nvml)
        wanted |= {name: (number, 1e-9) for name, number in ids.items()}
        self._fields = dict(wanted)
        self._read_fields(time.perf_counter_ns())
        refused = wanted.keys() - self._fields.keys()
        if "energy_j" in refused:
            function = "nvmlDeviceGetTotalEnergyConsumption"
            self._fast["energy_j"] = self._probe(function, board, scale=1e-3)
        if "power_w" in refused:
            # nvmlDeviceGetPowerUsage is instantaneous up to GA100 and a 1 s average after it.
            capability = self.device.compute_capability or ""
            instant = tuple(map(int, capability.split("."))) <= (8, 0) if capability else False
            name = "power_w" if instant else "power_average_w"
            if name in refused:
                self._fast[name] = self._probe("nvmlDeviceGetPowerUsage", board, scale=1e-3)
        for metric, policy in (("throttle_power_cap_s", 0), ("throttle_thermal_policy_s", 1)):
            if metric in refused:
                self._fast[metric] = lambda p=policy: (  # type: ignore[misc]
                    call("nvmlDeviceGetViolationStatus", board, p).violationTime * 1e-9
                )

    def _probe(self, function: str, *arguments: Any, scale: float = 1.0) -> Probe:
        return lambda: self._session.call(function, *arguments) * scale

    def _add(self, metric: str, now: int, value: float) -> None:
        counter = metric.startswith(_COUNTERS)
        self._series.add(self.uuid, metric, now, value, counter=counter)

    def _read_fields(self, now: int) -> None:
        if not self._fields:
            return
        ids = [number for number, _ in self._fields.values()]
        try:
            answers = self._session.fields(self._board, ids)
        except NvmlError as error:
            if error.kind in _FINAL:
                self.absent |= dict.fromkeys(self._fields, error.what)
                self._fields = {}
                return
            raise
        for (metric, (_, scale)), answer in zip(list(self._fields.items()), answers, strict=True):
            if answer.value is not None:
                self._add(metric, now, answer.value * scale)
            elif answer.kind is Kind.LOST:
                raise NvmlError(str(answer.reason), kind=Kind.LOST)
            elif answer.kind in _FINAL:
                self.absent[metric] = str(answer.reason)
                del self._fields[metric]

    def _read_probes(self, now: int, probes: dict[str, Probe]) -> None:
        for metric, probe in list(probes.items()):
            try:
                value = probe()
            except NvmlError as error:
                if error.kind in _FINAL:
                    self.absent[metric] = error.what
                    if metric == "gpu_utilization":
                        self.absent["memory_utilization"] = error.what
                    del probes[metric]
                    continue
                if error.kind is Kind.TRANSIENT:
                    self.absent.setdefault(metric, error.what)
                    continue
                raise
            self.absent.pop(metric, None)
            self._add(metric, now, value)
            if metric == "gpu_utilization":  # one call tells both
                self._add("memory_utilization", now, self._memory_utilization)

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
        self._add("foreign_processes", now, shares.foreign)
        self._add("display_processes", now, shares.display)
        if shares.own_bytes is not None:
            self._add("process_memory_bytes", now, shares.own_bytes)
        self.absent["process_memory_bytes"] = (
            shares.reason or "the measured process was not seen on the GPU"
        )

    def _utilization(self) -> float:
        rates = self._session.call("nvmlDeviceGetUtilizationRates", self._board)
        self._memory_utilization = rates.memory / 100
        return float(rates.gpu) / 100

    def _reasons(self) -> float:
        try:
            found = self._session.call("nvmlDeviceGetCurrentClocksEventReasons", self._board)
        except NvmlError as error:
            if error.kind is not Kind.UNSUPPORTED:
                raise
            # Drivers before 535 know it by its older name only.
            found = self._session.call("nvmlDeviceGetCurrentClocksThrottleReasons", self._board)
        return float(found)

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


_SHARED_BY_SLICES = (
    *("energy_j", "power_w", "power_average_w", "power_limit_w"),
    *("gpu_utilization", "memory_utilization"),
)
_COUNTERS = ("energy_j", "throttle_", "ecc_")
