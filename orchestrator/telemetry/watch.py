"""Watches one attempt from the supervisor: samplers start, follow the child, and become metrics.

::

    start(slot)     samplers begin: host always, NVML for the slot's GPUs
    attach(pid)     the measured process is known
    finish(phases)  samplers stop; series are aggregated over the child's phase boundaries

Nothing here may spoil an attempt: what goes wrong becomes a reason in the result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.attempt import Observations, Slot
from orchestrator.measure.metric import Metric, Phase
from orchestrator.measure.series import PARQUET_ARTIFACT, SeriesSet
from orchestrator.telemetry.aggregate import HostSampling, host_figures
from orchestrator.telemetry.aggregate_gpu import gpu_figures
from orchestrator.telemetry.device import Device
from orchestrator.telemetry.fingerprint import hardware_of
from orchestrator.telemetry.gpu import GpuSampler
from orchestrator.telemetry.host import SLOW_EVERY, HostSampler
from orchestrator.telemetry.pacer import Pacer
from orchestrator.telemetry.window import windows_by_phase


class Telemetry:
    """Telemetry of one attempt; ``start``, ``attach`` and ``finish`` are called once each.

    Parameters
    ----------
    settings : mapping
        The ``telemetry`` configuration group: ``nvml_period_s``, ``host_period_s``.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._nvml_period_s = float(settings.get("nvml_period_s", 0.05))
        self._host_period_s = float(settings.get("host_period_s", 0.1))
        self._slot: Slot | None = None
        self._host: HostSampler | None = None
        self._gpu: GpuSampler | None = None
        self._pacers: list[Pacer] = []
        self._began_ns = 0
        self._attached_ns: int | None = None

    def start(self, slot: Slot) -> None:
        """Begin to sample the slot's host and GPUs, before the measured process exists."""
        self._slot = slot
        self._began_ns = time.perf_counter_ns()
        host = self._host = HostSampler(slot.cpus, period_s=self._host_period_s)
        self._pacers.append(Pacer("telemetry-host", host.tick, lambda: host.period_s))
        if slot.gpus:
            gpu = self._gpu = GpuSampler(slot.gpus, period_s=self._nvml_period_s)
            gpu.open()
            self._pacers.append(
                Pacer("telemetry-nvml", gpu.tick, lambda: gpu.period_s, at_edges=gpu.edge)
            )

    def attach(self, pid: int) -> None:
        """Follow the measured process ``pid`` from now on."""
        self._attached_ns = time.perf_counter_ns()
        # The samplers have no locks: each is read here only while its thread does not run yet.
        if self._host is not None:
            self._host.attach(pid)
        if self._gpu is not None:
            self._gpu.attach(pid)
        for pacer in self._pacers:
            pacer.start()

    def finish(self, phases: list[Phase]) -> Observations:
        """Stop sampling and aggregate over the phases; called however the attempt ended."""
        host, gpu = self._host, self._gpu
        if host is None or self._slot is None:
            return Observations()
        hanging = {p.name for p in self._pacers if not p.stop()}
        failures = {p.name: repr(p.failure) for p in self._pacers if p.failure is not None}
        if "telemetry-host" not in hanging:
            # What could not be read once would end this too, and the GPUs' figures with it.
            if "telemetry-host" not in failures:
                host.tick(slow=True)
            host.close()
        # What came before the process (imports, an environment that was built) is no part of it.
        attempt = (self._attached_ns or self._began_ns, time.perf_counter_ns())
        windows = windows_by_phase(phases, attempt)
        series = SeriesSet(self._began_ns)
        series.merge(host.series.snapshot() if "telemetry-host" in hanging else host.series)
        sampling = HostSampling(
            cores=len(self._slot.cpus) or os.cpu_count() or 1,
            fast_s=host.period_s,
            slow_s=host.period_s * SLOW_EVERY,
        )
        facts: dict[str, Any] = {
            "enabled": True,
            "host_period_s": host.period_s,
            "host_rounds": host.ticks,
            "host_cost_s": host.spent_s,
            "absent": dict(host.absent),
            "lost": {},
        }
        devices: Sequence[Device] = ()
        if gpu is not None:
            gpu.close(hanging="telemetry-nvml" in hanging)
            devices = gpu.devices
            series.merge(gpu.series)
            facts |= gpu.facts()
        if failures:
            facts["failures"] = list(failures.values())
        aggregates: dict[str, Metric] = {}
        for phase, found in windows.items():
            aggregates |= host_figures(phase, found, series, sampling, host.absent)
            reasons = gpu.absent if gpu is not None else {}
            aggregates |= gpu_figures(
                phase, found, series, self._slot.gpus, reasons, period_s=self._nvml_period_s
            )
        artifacts: dict[str, bytes] = {}
        try:
            artifacts[PARQUET_ARTIFACT] = series.to_parquet()
        except Exception as error:  # what is known of the phases must not be lost with it
            facts["series_absent"] = f"{type(error).__name__}: {error}"
        facts = {"telemetry": facts, **hardware_of(self._slot, devices)}
        return Observations(aggregates, artifacts, facts)
