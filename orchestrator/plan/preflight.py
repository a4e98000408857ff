"""Before anything runs: what each trial is predicted to need, and whether the device has it.

::

    plan --Task.expect--> memory --against the device--> warn: a line; skip: the trial is infeasible
                     `--> times at this machine's ceilings, for `plan`

Only what is certain makes a trial infeasible (weights, cache, gradients, moments; a training step
in numbers that the CPU has no instructions for); where the rest of the estimate makes it too much,
a person is told and it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Protocol

from orchestrator.errors import ConfigError
from orchestrator.host.cpu import emulates_half_precision
from orchestrator.host.memory import usable_bytes
from orchestrator.measure.registry import find_task
from orchestrator.measure.wording import counted, gib

if TYPE_CHECKING:
    from orchestrator.attempt import Trial
    from orchestrator.model import Ceilings, Expectation
    from orchestrator.plan.plan import Plan
    from orchestrator.plan.schema import ClusterConfig

_HALF_PRECISION = frozenset(("bfloat16", "float16"))
# About a second where such products are emulated; decoding one token of a small model stays below.
_SLOW_EMULATED_FLOPS = 1e9
# What only a training step has. Emulated it is out of the question for more than a look: with two
# cores of an AMD EPYC (AVX2) and torch 2.13 a step of 20 million parameters took 28 times as long
# as in float32, one of 129 million 54 times: the product that gives the input's gradient runs at
# 1 GFLOP/s, those of a forward pass at 15.
_TRAINED = "backward_s"
_OUT_OF_REACH = (
    "this CPU has no instructions for half precision (no AVX-512), in which a step takes some 50 "
    "times as long as in float32: use quant=fp32, or preflight=warn to measure it anyway"
)


@dataclass(frozen=True)
class Preflight:
    """A plan after its preflight.

    Attributes
    ----------
    plan : Plan
        With ``preflight=skip`` what cannot fit is infeasible in it.
    predicted : mapping of config hash to mapping
        ``memory_bytes``, the sizes it is made of and times in seconds; None where one is not known.
    warnings : tuple of str
        One line each.
    doubts : mapping of config hash to str
        Of trials that will run although they are predicted not to fit: why not.
    """

    plan: Plan
    predicted: Mapping[str, dict[str, float | None]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    doubts: Mapping[str, str] = field(default_factory=dict)


class Gpu(Protocol):
    """What is asked of a GPU of this machine."""

    @property
    def name(self) -> str:
        """As NVML calls it."""
        ...

    @property
    def memory_bytes(self) -> int:
        """All of its memory."""
        ...


Gpus = Callable[[], Sequence[Gpu]]


def preflight(plan: Plan, gpus: Gpus = tuple, *, times: bool = False) -> Preflight:
    """Predict every trial of ``plan`` that arithmetic knows, as ``preflight=warn|skip|off`` says.

    Parameters
    ----------
    gpus : callable
        This machine's GPUs; asked for once, and only where a trial wants one.
    times : bool
        Also predict times: against the ceilings measured here, else against the data sheet.
    """
    mode = plan.settings.preflight
    if mode == "off":
        return Preflight(plan)
    gpus = cache(gpus)
    ceilings = cache(partial(_ceilings, cluster=plan.settings.cluster.kind, gpus=gpus))
    predicted: dict[str, dict[str, float | None]] = {}
    trials: list[Trial] = []
    impossible: list[tuple[float, float]] = []
    tight: list[tuple[float, float]] = []
    doubts: dict[str, str] = {}
    halves, emulates = 0, emulates_half_precision()
    for trial in plan.trials:
        on_gpu = trial.identity["device"]["kind"] == "cuda"
        if on_gpu and plan.settings.cluster.kind == "local" and not gpus():
            doubts[trial.hash] = "there is no GPU here"
        expectation = _expectation(trial)
        if expectation is not None:
            predicted[trial.hash] = _figures(expectation, trial, ceilings if times else None)
            emulated = (
                emulates
                and _is_in_half(trial, plan.settings.cluster)
                and _multiplies_much_in_half(expectation)
            )
            available = memory_available(trial, plan.settings.cluster, gpus)
            floor = expectation.floor_bytes
            if available is None or trial.infeasible is not None:
                pass
            elif floor is not None and floor > available:
                impossible.append((floor, available))
                reason = f"needs at least {gib(floor)} of memory, there are {gib(available)}"
                if mode == "skip":
                    trial = dataclasses.replace(trial, infeasible=reason)
                else:
                    doubts[trial.hash] = reason
            elif emulated and mode == "skip" and _TRAINED in expectation.made_steps():
                trial = dataclasses.replace(trial, infeasible=_OUT_OF_REACH)
            elif (needed := expectation.memory_bytes) > available:
                tight.append((needed, available))
                doubts[trial.hash] = f"needs about {gib(needed)}, there are {gib(available)}"
            if trial.infeasible is None:
                halves += emulated
        trials.append(trial)
    warnings = []
    if plan.settings.cluster.kind == "local" and any(map(_wants_gpu, plan.trials)):
        for name in dict.fromkeys(_without_own_memory(gpus)):
            warnings.append(
                f"{name} reports no memory of its own (unified memory): what fits is not known"
            )
    if impossible and mode == "warn":
        said = _told(impossible, "cannot fit into memory by prediction", "at least ")
        warnings.append(f"{said}. preflight=skip leaves such trials out")
    if tight:
        warnings.append(_told(tight, "may not fit into memory", "about "))
    if halves:
        warnings.append(
            f"{counted(halves, 'trial')} in half precision, for which this CPU has no instructions "
            "(no AVX-512): matmuls up to 100 times slower than with quant=fp32"
        )
    checked = dataclasses.replace(plan, trials=tuple(trials))
    return Preflight(checked, predicted, tuple(warnings), doubts)


def memory_available(trial: Trial, cluster: ClusterConfig, gpus: Gpus = tuple) -> float | None:
    """Bytes that the trial may use; None where nobody here can tell (another cluster's nodes)."""
    asked = trial.resources.memory_bytes
    if trial.identity["device"]["kind"] == "cpu":
        if cluster.kind != "local":
            return asked
        return min(filter(None, (asked, float(usable_bytes()))))
    if cluster.kind != "local":
        return None
    if _without_own_memory(gpus):
        return None
    smallest = min((float(gpu.memory_bytes) for gpu in gpus()), default=None)
    return None if smallest is None else smallest * max(trial.resources.gpus, 1)


def _without_own_memory(gpus: Gpus) -> list[str]:
    """Names of GPUs that report no memory of their own: they share the host's."""
    return [gpu.name for gpu in gpus() if not gpu.memory_bytes]


def _wants_gpu(trial: Trial) -> bool:
    return bool(trial.identity["device"]["kind"] == "cuda")


def _expectation(trial: Trial) -> Expectation | None:
    expect = find_task(trial.identity["task"]["name"]).expect
    if expect is None:
        return None
    try:
        return expect(trial.identity, None)
    except (ConfigError, KeyError, TypeError):
        return None  # the arithmetic does not know this model; the run may


def _is_in_half(trial: Trial, cluster: ClusterConfig) -> bool:
    """Whether this host's CPU will compute in half precision."""
    identity = trial.identity
    if identity["device"]["kind"] != "cpu" or cluster.kind != "local":
        return False
    return bool({identity["quant"]["dtype"], identity["task"].get("autocast")} & _HALF_PRECISION)


def _multiplies_much_in_half(expectation: Expectation) -> bool:
    """Whether it will be noticed where such products are emulated."""
    return any(
        of_a_step.dtype in _HALF_PRECISION
        and of_a_step.count * of_a_step.flops > _SLOW_EMULATED_FLOPS
        for steps in expectation.made_steps().values()
        for of_a_step in steps.eager
    )


def _figures(
    expectation: Expectation,
    trial: Trial,
    ceilings_of: Callable[[str], tuple[Ceilings | None, bool]] | None,
) -> dict[str, float | None]:
    found: dict[str, float | None] = {"memory_bytes": expectation.memory_bytes}
    found.update(expectation.sizes_bytes)
    if ceilings_of is None:
        return found
    ceilings, measured = ceilings_of(trial.identity["device"]["kind"])
    if ceilings is None:
        return {**found, **dict.fromkeys(expectation.made_steps())}
    for name, time in expectation.times_s(ceilings, measured=measured).items():
        found[name] = None if isinstance(time, str) else time.time_s
    return found


def _ceilings(kind: str, cluster: str, gpus: Gpus) -> tuple[Ceilings | None, bool]:
    """What this machine was measured to reach, else its data sheet; None for other machines."""
    from orchestrator.model import datasheet_of
    from orchestrator.model.known_ceilings import load_this

    if cluster != "local":
        return None, False
    try:
        found = load_this((kind,))
    except ConfigError:
        found = None
    if found is not None and found.is_steady:
        return found, True
    if kind != "cuda":
        return None, False
    found_gpus = gpus()
    return (datasheet_of(found_gpus[0].name) if found_gpus else None), False


def _told(found: list[tuple[float, float]], what: str, about: str) -> str:
    needed, available = max(found)
    most = "it needs" if len(found) == 1 else "the largest needs"
    trials = counted(len(found), "trial")
    return f"{trials} {what}: {most} {about}{gib(needed)}, there are {gib(available)}"
