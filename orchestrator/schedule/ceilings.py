"""After a sweep: what the machine can do at most is measured, as far as its trials need it.

::

    recorded attempts --needed_ceilings--> operations, by hardware --less what is kept--> missing
    missing --a plan of task=ceilings--> run --> kept by hardware, for every prediction from now on

An attempt of its own, recorded in the experiment ``ceilings``. Stopping it loses no result: the
predictions are absent, and the next sweep tries again. A sweep that took less time than its
ceilings would is not made to wait for them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import AttemptReport, Outcome, Resources
from orchestrator.errors import OrchestratorError
from orchestrator.model.known_ceilings import (
    keep_ceilings,
    load_ceilings,
    mark_tried,
    tried_lately,
)
from orchestrator.model.measured_device import Measured
from orchestrator.plan.predictions import ceilings_key, needed_ceilings

if TYPE_CHECKING:
    from orchestrator.plan.plan import Plan
    from orchestrator.plan.schema import Settings

TASK = "ceilings"
# Longer than this the machine is too busy for what is called a ceiling, and somebody waits.
TIMEOUT_S = 60.0
# A sweep that took less than the ceilings would is not made to wait for them.
WORTH_S = 20.0


@dataclass(frozen=True)
class Missing:
    """Ceilings of one kind of hardware that predictions need and nobody has measured.

    Attributes
    ----------
    key : str
        What they are kept by.
    device : mapping
        The identity's ``device`` of an attempt that ran there.
    resources : Resources
        As that attempt had them.
    operations : frozenset of str
        ``inference.bfloat16``, ``training.float32`` ...
    """

    key: str
    device: Mapping[str, Any]
    resources: Resources
    operations: frozenset[str]


def measure_missing(
    attempts: Iterable[tuple[Mapping[str, Any], AttemptReport]],
    settings: Settings,
    *,
    run: Callable[[Plan], AttemptReport | None],
    say: Callable[[str], object],
) -> None:
    """Measure the ceilings that predictions of these attempts need and the cache does not have.

    Parameters
    ----------
    attempts : iterable of (identity, AttemptReport)
        Of a sweep that has ended. What a ``task=ceilings`` among them measured is kept first.
    settings : Settings
        Of that sweep; ``ceilings=off`` measures nothing.
    run : callable
        Runs a plan of one trial and returns its report; None where it was stopped or lost.
    say : callable
        Takes one line for the user.
    """
    attempts = list(attempts)
    for identity, report in attempts:
        keep_measured(report, identity)
    took_s = sum(report.duration_s for _, report in attempts)
    if settings.ceilings == "off" or took_s < WORTH_S:
        return
    for missing in missing_ceilings(attempts):
        say(
            "measuring what this hardware can do at most, for predictions: some 20 s; "
            "Ctrl-C skips it, ceilings=off leaves it out"
        )
        try:
            mark_tried(missing.key, missing.operations)
        except OSError as error:
            say(f"the cache of measured ceilings cannot be written: {error.strerror}")
            return
        plan = _plan(missing, settings)
        try:
            ended = run(plan)
        except OrchestratorError as error:
            say(f"no predictions of times: {error}")
            return
        if ended is None or ended.outcome is Outcome.CANCELLED:
            return
        keep_measured(ended, plan.trials[0].identity)
        if ended.outcome is not Outcome.OK:
            reason = ended.reason or ended.outcome.value
            say(f"no predictions of times: the ceilings could not be measured: {reason}")


def missing_ceilings(
    attempts: Iterable[tuple[Mapping[str, Any], AttemptReport]],
) -> list[Missing]:
    """What to measure, an entry for each kind of hardware; what failed lately is left alone."""
    found: dict[str, Missing] = {}
    for identity, report in attempts:
        key, slot = ceilings_key(report, identity), report.slot
        needed = needed_ceilings(report, identity)
        if key is None or slot is None or not needed:
            continue
        if key in found:
            needed |= found[key].operations
        resources = Resources(gpus=len(slot.gpus), cpus=len(slot.cpus) or None)
        found[key] = Missing(key, identity["device"], resources, needed)
    missing = []
    for key, entry in found.items():
        known = load_ceilings(key)
        if known is not None and known.is_steady:
            entry = replace(entry, operations=entry.operations - known.operations)
        if entry.operations and not tried_lately(key, entry.operations):
            missing.append(entry)
    return missing


def keep_measured(report: AttemptReport, identity: Mapping[str, Any]) -> None:
    """Keep what an attempt of ``task=ceilings`` measured; any other is none of our business."""
    tree = report.facts.get(TASK)
    key = ceilings_key(report, identity)
    if report.outcome is not Outcome.OK or not tree or not key or report.facts.get("simulated"):
        return
    here = report.slot is not None and report.slot.host == socket.gethostname()
    try:
        kind = str(identity["device"]["kind"]) if here else None
        keep_ceilings(key, Measured.from_json(tree), this=kind)
    except (OSError, ValueError, KeyError, TypeError):
        return  # of another version, or a cache that cannot be written: nothing is predicted


def _plan(missing: Missing, settings: Settings) -> Plan:
    from orchestrator.plan.expand import build

    device = missing.device
    words = [f"task={TASK}", f"task.operations={'+'.join(sorted(missing.operations))}"]
    words.append(f"device={device['kind']}")
    if device["threads"]:
        words.append(f"device.threads={device['threads']}")
    plan = build(words, device_kind=lambda _: str(device["kind"]))
    accelerator = settings.resources.accelerator
    trial = replace(
        plan.trials[0],
        resources=replace(missing.resources, accelerator=accelerator),
        timeout_s=TIMEOUT_S,
    )
    return replace(
        plan,
        sweep=TASK,
        description="What the hardware can do at most, for predictions",
        trials=(trial,),
        settings=replace(settings, repeats=1),
    )
