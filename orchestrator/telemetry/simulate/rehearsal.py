"""Lets a person try verdict rules on GPUs that are not there: an attempt that measures nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from orchestrator.attempt import AttemptReport, Outcome, Slot
from orchestrator.host.cpu import usable_cores
from orchestrator.measure.metric import Phase
from orchestrator.telemetry.device import devices
from orchestrator.telemetry.verdict import judge
from orchestrator.telemetry.watch import Telemetry


def rehearse(
    verdict: Mapping[str, Any],
    *,
    seconds: float = 3.0,
    telemetry: Mapping[str, Any] | None = None,
) -> AttemptReport:
    """Watch every GPU here for a while, as an attempt that owns them all, and judge what was seen.

    Parameters
    ----------
    verdict : mapping
        The ``verdict`` configuration group, or its rules.
    seconds : float
        Length of the one measured phase, ``rehearsal``.
    telemetry : mapping, optional
        The ``telemetry`` configuration group.

    Raises
    ------
    ConfigError
        If a rule cannot be meant.
    """
    host = socket.gethostname()
    cores = usable_cores()
    uuids = tuple(device.uuid for device in devices())
    # Where the driver tells of none, an attempt would still be given one by its number.
    slot = Slot(host, host, cores, uuids, ",".join(uuids) or "0")
    watch = Telemetry(telemetry or {})
    started_at = time.time()
    watch.start(slot)
    watch.attach(os.getpid())
    begin_ns = time.perf_counter_ns()
    time.sleep(seconds)
    phases = [Phase("rehearsal", begin_ns, time.perf_counter_ns())]
    seen = watch.finish(phases)
    report = AttemptReport(
        "rehearsal",
        "",
        Outcome.OK,
        started_at=started_at,
        ended_at=time.time(),
        duration_s=seconds,
        phases=phases,
        telemetry=seen.aggregates,
        facts=seen.facts,
        slot=slot,
        artifacts=seen.artifacts,
    )
    report.verdict = judge(report, verdict)
    return report
