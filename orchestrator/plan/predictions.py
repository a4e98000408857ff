"""Predicted beside measured, derived where a report is shown; what was recorded stays as it was.

::

    report --Task.expect(identity, model_config)--> sizes, operations
        measured ceilings   as this machine's cache has them by the hardware the report names
        data sheet          by the GPU's name
    predicted_*  and  measured_over_predicted.*  stand beside the report's own metrics
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.errors import ConfigError
from orchestrator.model.measured_device import OPERATIONS
from orchestrator.model.operations import INFERENCE

if TYPE_CHECKING:
    from orchestrator.measure import Identity
    from orchestrator.measure.predicted import Limits
    from orchestrator.model import Expectation, Measured

log = logging.getLogger(__name__)


def with_predictions(report: AttemptReport, identity: Identity) -> AttemptReport:
    """The report with what is predicted beside what an ``ok`` attempt measured.

    Never raises: a prediction must not cost a measurement. What cannot be predicted is absent with
    the reason.
    """
    try:
        expectation = expectation_of(report, identity)
        if expectation is None:
            return report
        from orchestrator.measure.predicted import predicted_metrics

        found = predicted_metrics(expectation, report.metrics, _limits(report, identity))
    except Exception as error:
        log.debug("no prediction", exc_info=True)
        failed = (
            str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        )
        return replace(report, facts={**report.facts, "prediction_failed": failed})
    return replace(report, metrics={**found, **report.metrics})


def expectation_of(report: AttemptReport, identity: Identity) -> Expectation | None:
    """What arithmetic expects of an ``ok`` attempt; None where it says nothing of its task.

    Raises
    ------
    ConfigError
        If the arithmetic does not know the model, or a field is missing.
    """
    from orchestrator.measure.registry import find_task

    config = report.facts.get("model_config")
    if report.outcome is not Outcome.OK or config is None:
        return None
    expect = find_task(identity["task"]["name"]).expect
    return None if expect is None else expect(identity, config)


def needed_ceilings(report: AttemptReport, identity: Identity) -> frozenset[str]:
    """What ``task=ceilings`` must measure to predict this attempt: ``inference.bfloat16`` ...

    Empty where nothing can be predicted, or no measured ceiling would serve.
    """
    try:
        expectation = expectation_of(report, identity)
        if expectation is None or _unmeasurable(report, identity):
            return frozenset()
        asked = {
            (o.mode, o.dtype) for steps in expectation.made_steps().values() for o in steps.eager
        }
    except Exception:
        log.debug("no ceilings", exc_info=True)
        return frozenset()
    dtypes = {dtype for _, dtype in asked}
    dtypes |= {work.dtype for work in expectation.work.values() if not isinstance(work, str)}
    # A utilisation is the share of the best product, and those are measured as an inference's.
    needed = {"int8" if dtype == "int8" else f"{INFERENCE}.{dtype}" for dtype in dtypes}
    needed |= {f"training.{dtype}" for mode, dtype in asked if mode != INFERENCE}
    return frozenset(needed & set(OPERATIONS))


def ceilings_key(report: AttemptReport, identity: Identity) -> str | None:
    """What measured ceilings are kept by: hardware, kind of device, threads and torch.

    None where the report does not say what it ran on.
    """
    fingerprint = report.facts.get("hardware_fingerprint")
    if not fingerprint:
        return None
    device = identity["device"]
    threads = device["threads"] or (len(report.slot.cpus) if report.slot else 0)
    packages = report.provenance.get("packages") or {}
    return f"{fingerprint}-{device['kind']}-{threads}t-torch{packages.get('torch', 'none')}"


def _limits(report: AttemptReport, identity: Identity) -> Limits:
    from orchestrator.measure.predicted import Limits
    from orchestrator.model import datasheet_of

    if reason := _unmeasurable(report, identity):
        return Limits(reason, reason)
    measured = _measured(report, identity)
    if identity["device"]["kind"] != "cuda":
        return Limits(measured, "no data sheet of this CPU")
    gpus = _gpus(report)
    name = str(gpus[0].get("name")) if gpus else "this GPU"
    sheet = datasheet_of(name)
    return Limits(
        measured, sheet if sheet is not None else f"no data sheet of {name} in conf/hardware"
    )


def _unmeasurable(report: AttemptReport, identity: Identity) -> str | None:
    """Why no ceiling holds for this attempt, or None."""
    if report.facts.get("simulated"):
        return "the GPU is simulated"
    if identity["device"]["kind"] == "cuda" and len(_gpus(report)) > 1:
        return "one GPU is predicted, this attempt had more"
    return None


def _gpus(report: AttemptReport) -> tuple[Mapping[str, Any], ...]:
    return tuple((report.facts.get("hardware") or {}).get("gpus") or ())


def _measured(report: AttemptReport, identity: Identity) -> Measured | str:
    from orchestrator.model.known_ceilings import load_ceilings

    key = ceilings_key(report, identity)
    found = None if key is None else load_ceilings(key)
    if found is None:
        return "the ceilings of this hardware are not measured: task=ceilings measures them"
    if reason := found.disturbance:
        return reason
    if missing := needed_ceilings(report, identity) - found.operations:
        return f"the ceilings of {', '.join(sorted(missing))} are not measured"
    return found
