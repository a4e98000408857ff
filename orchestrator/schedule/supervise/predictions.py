"""Predicted beside measured: what arithmetic and this device's ceilings say of a finished attempt.

::

    report ok --Task.expect(identity, model_config)--> sizes, operations
        measured ceilings   from the cache; else an attempt of task=ceilings on the same slot, once
        data sheet          by the GPU's name
    predicted_*  and  measured_over_predicted.*  become metrics of the report
"""

from __future__ import annotations

import logging
import uuid
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import AttemptReport, AttemptSpec, Outcome, Slot
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.isolate import Isolation
    from orchestrator.model import Expectation, Limits, Measured

TASK = "ceilings"
# Half a minute of work; longer than this the machine is too busy for what is called a ceiling.
# Two minutes were seen on a CPU without instructions for half precision.
TIMEOUT_S = 300.0
_LOCK_PATIENCE_S = 90.0

log = logging.getLogger(__name__)


def add_predictions(
    report: AttemptReport, spec: AttemptSpec, slot: Slot, isolation: Isolation
) -> None:
    """Add what is predicted to an ``ok`` report's metrics; keep what ``task=ceilings`` measured.

    Never raises: a prediction must not cost a measurement. What cannot be predicted is absent with
    the reason.
    """
    if report.outcome is not Outcome.OK:
        return
    try:
        if "ceilings" in report.facts:
            _keep(report, spec, slot)
        expectation = _expectation(report, spec)
        if expectation is None:
            return
        from orchestrator.model import predicted_metrics

        limits = _limits(report, spec, slot, isolation)
        found = predicted_metrics(expectation, report.metrics, limits)
        report.metrics.update({k: v for k, v in found.items() if k not in report.metrics})
    except Exception as error:
        report.facts["prediction_failed"] = f"{type(error).__name__}: {error}"
        log.debug("no prediction", exc_info=True)


def ceilings_key(report: AttemptReport, spec: AttemptSpec, slot: Slot) -> str:
    """What measured ceilings are kept by: hardware, kind of device, threads and torch."""
    device = spec.identity["device"]
    threads = device["threads"] or len(slot.cpus) or 0
    return f"{_fingerprint(report, slot)}-{device['kind']}-{threads}t-torch{_torch_version()}"


def _expectation(report: AttemptReport, spec: AttemptSpec) -> Expectation | None:
    from orchestrator.measure.registry import find_task

    expect = find_task(spec.identity["task"]["name"]).expect
    config = report.facts.get("model_config")
    if expect is None or config is None:
        return None
    try:
        return expect(spec.identity, config)
    except ConfigError as error:
        report.facts["prediction_failed"] = str(error)
        return None


def _limits(report: AttemptReport, spec: AttemptSpec, slot: Slot, isolation: Isolation) -> Limits:
    from orchestrator.model import Limits, datasheet_of

    kind = spec.identity["device"]["kind"]
    if report.facts.get("simulated"):
        reason = "the GPU is simulated"
        return Limits(reason, reason)
    if kind != "cuda":
        return Limits(_measured(report, spec, slot, isolation), "no data sheet of this CPU")
    gpus = (report.facts.get("hardware") or {}).get("gpus") or ()
    if len(gpus) > 1:
        reason = "one GPU is predicted, this attempt had more"
        return Limits(reason, reason)
    name = str(gpus[0].get("name")) if gpus else "this GPU"
    sheet = datasheet_of(name)
    return Limits(
        _measured(report, spec, slot, isolation),
        sheet if sheet is not None else f"no data sheet of {name} in conf/hardware",
    )


def _measured(
    report: AttemptReport, spec: AttemptSpec, slot: Slot, isolation: Isolation
) -> Measured | str:
    """This hardware's ceilings, measured now if they never were; or why there are none."""
    from filelock import FileLock, Timeout

    from orchestrator.model.known_ceilings import (
        ceilings_directory,
        load_ceilings,
        mark_tried,
        tried_lately,
    )

    key = ceilings_key(report, spec, slot)
    found = load_ceilings(key)
    if (found is None or not found.is_steady) and not tried_lately(key):
        try:
            directory = ceilings_directory()
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Supervisors of one kind of hardware need it measured once.
            with FileLock(directory / "measuring.lock", timeout=_LOCK_PATIENCE_S):
                if not tried_lately(key):
                    mark_tried(key)
                    measured = _measure(key, spec, slot, isolation)
                    if isinstance(measured, str):
                        return measured
                found = load_ceilings(key)
        except Timeout:
            return "the ceilings of this device were being measured by another attempt"
        except OSError as error:
            return f"the cache of measured ceilings cannot be written: {error.strerror}"
    if found is None:
        return "the ceilings of this device could not be measured within the last hour"
    if not found.is_steady:
        return (
            "this machine was too busy when its ceilings were measured: a typical measurement was "
            f"{found.spread:.1f} times its best"
        )
    return found


def _measure(key: str, spec: AttemptSpec, slot: Slot, isolation: Isolation) -> Measured | str:
    asked = AttemptSpec(
        attempt_id=uuid.uuid4().hex,
        config_hash=spec.config_hash,
        identity={**spec.identity, "task": {"name": TASK}},
        timeout_s=TIMEOUT_S,
        start_timeout_s=spec.start_timeout_s,
        memory_limit_bytes=spec.memory_limit_bytes,
        start=spec.start,
    )
    ended: AttemptReport | None = None
    for item in isolation.run(asked, slot):
        if isinstance(item, AttemptReport):
            ended = item
    if ended is None or ended.outcome is not Outcome.OK:
        reason = "no report" if ended is None else ended.reason or ended.outcome.value
        return f"the ceilings of this device could not be measured: {reason}"
    return _store(key, spec, ended.facts["ceilings"])


def _keep(report: AttemptReport, spec: AttemptSpec, slot: Slot) -> None:
    if not report.facts.get("simulated"):
        _store(ceilings_key(report, spec, slot), spec, report.facts["ceilings"])


def _store(key: str, spec: AttemptSpec, tree: dict[str, Any]) -> Measured:
    from orchestrator.model import Measured
    from orchestrator.model.known_ceilings import load_ceilings, store_ceilings

    measured = Measured.from_json(tree)
    before = load_ceilings(key)
    if before is not None and not measured.is_steady and before.spread <= measured.spread:
        return before
    store_ceilings(key, spec.identity["device"]["kind"], measured)
    return measured


def _fingerprint(report: AttemptReport, slot: Slot) -> str:
    known = report.facts.get("hardware_fingerprint")
    if known:
        return str(known)
    from orchestrator.telemetry import hardware_of

    return str(hardware_of(slot, ())["hardware_fingerprint"])


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "none"
