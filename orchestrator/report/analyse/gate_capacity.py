"""Whether a capacity has fallen: the levels of two searches, each judged by all its attempts.

::

    base        |----------|            passed -- failed
    new    |----|                       all of it lower by more than tau: regression
    new             |----------|        overlapping or higher: pass
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from orchestrator.attempt import AttemptReport
from orchestrator.report.analyse.gate_rules import Capacity, all_but, applies, value_at
from orchestrator.report.analyse.measured import cannot_run, class_of
from orchestrator.report.analyse.pairing import Attempts, choose
from orchestrator.report.analyse.slo import worst_uses
from orchestrator.statistics.judge import CONFIDENCE, tolerance

State = Literal["pass", "regression", "inconclusive", "incomparable"]


@dataclass(frozen=True)
class CapacityFinding:
    """What became of one capacity.

    Attributes
    ----------
    hash : str
        Of the new levels, one.
    limit : float
        Of the ratio, new over base: under it is a regression.
    low, high : float or None
        What the ratio is at least and at most; None where an interval is open at that end.
    """

    hash: str
    state: State
    reason: str
    limit: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Interval:
    """The highest level that passed, and the lowest that failed; None for none."""

    low: float | None
    high: float | None

    def __str__(self) -> str:
        low, high = ("?" if end is None else f"{end:g}" for end in (self.low, self.high))
        return f"{low} to {high}"


def capacity_findings(
    rule: Capacity,
    base: Attempts,
    new: Attempts,
    configs: Mapping[str, Mapping[str, Any]],
    *,
    noise: float | None,
    allow_different: bool,
    names: tuple[str, str],
) -> Iterator[CapacityFinding]:
    """One for each configuration of which both sides have levels.

    Parameters
    ----------
    configs : mapping of config hash to identity
        Trials without one are no level of anything.
    noise : float or None
        Relative A/A noise, as of :func:`orchestrator.statistics.judge.tolerance`.
    names : tuple of str
        What the sides are called.
    """
    before, now = _curves(rule, base, configs), _curves(rule, new, configs)
    for curve, levels in now.items():
        if curve not in before:
            continue
        at: dict[int, float] = {}
        sides = []
        for side in (before[curve], levels):
            # All levels are one trial in what they are compared by: machine and content.
            alike = [_alike(r, allow_different) for reports in side.values() for r in reports]
            of_level = [level for level, reports in side.items() for _ in reports]
            at |= {id(report): level for report, level in zip(alike, of_level, strict=True)}
            sides.append(alike)
        last = next(reversed(levels.values()))[-1].config_hash
        chosen = choose(*sides, allow_different=allow_different, names=names)
        limit = 1.0 / (1.0 + tolerance(noise))
        if chosen.reason is not None:
            yield CapacityFinding(last, "incomparable", chosen.reason, limit)
            continue
        ends = [
            _interval(_by_level(rule, reports, at), _that_cannot_run(side, reports, at), rule)
            for side, reports in zip(sides, (chosen.a, chosen.b), strict=True)
        ]
        yield _compared(ends, rule, last, limit, names)


def _alike(report: AttemptReport, allow_different: bool) -> AttemptReport:
    # Where a machine is not known, as that of an endpoint, attempts are pooled on demand only.
    conditions = None if allow_different else report.conditions
    return replace(report, config_hash="", conditions=conditions)


def _curves(
    rule: Capacity, side: Attempts, configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[float, Sequence[AttemptReport]]]:
    """Attempts by level, of each configuration without its level."""
    found: dict[str, dict[float, Sequence[AttemptReport]]] = {}
    for config_hash, reports in side.items():
        config = configs.get(config_hash)
        level = None if config is None else value_at(config, rule.over)
        if config is None or isinstance(level, bool) or not isinstance(level, (int, float)):
            continue
        if applies(rule.when, config):
            found.setdefault(all_but(config, rule.over), {})[level] = reports
    return found


def _by_level(
    rule: Capacity, reports: Sequence[AttemptReport], at: Mapping[int, float]
) -> dict[float, list[list[float]]]:
    found: dict[float, list[list[float]]] = {}
    limits = {str(name): limit for name, limit in rule.limits.items()}
    for report in reports:
        if used := worst_uses(report, limits):
            found.setdefault(at[id(report)], []).append(used)
    return found


def _that_cannot_run(
    side: Sequence[AttemptReport], chosen: Sequence[AttemptReport], at: Mapping[int, float]
) -> list[float]:
    """Levels for which there is no memory, for example, on the machines of the chosen attempts."""
    classes = {"", *map(class_of, chosen)}
    return [at[id(each)] for each in side if class_of(each) in classes and cannot_run([each])]


def _interval(
    levels: Mapping[float, Sequence[Sequence[float]]], impossible: Sequence[float], rule: Capacity
) -> _Interval:
    """From the levels that a bound decides, each with the error that a search gives it.

    :mod:`orchestrator.search.capacity` says why it is half of all; on simulated searches, which the
    interval is then never wider than, 1 to 4 % of them do not hold the capacity.
    """
    from orchestrator.statistics.attainment import attainment

    error = (1.0 - CONFIDENCE) / 2.0
    judged = {level: attainment(uses, rule.attainment) for level, uses in levels.items()}
    failed = [level for level, found in judged.items() if found.p_fail <= error]
    failed += impossible
    high = min(failed, default=None)
    passed = [level for level, found in judged.items() if found.p_pass <= error]
    return _Interval(max((p for p in passed if p < (high or math.inf)), default=None), high)


def _compared(
    sides: Sequence[_Interval],
    rule: Capacity,
    config_hash: str,
    limit: float,
    names: tuple[str, str],
) -> CapacityFinding:
    base, new = sides
    least = None if new.low is None or base.high is None else new.low / base.high
    most = None if new.high is None or base.low is None else new.high / base.low
    state: State = "inconclusive"
    said = f"{rule.over} from {base} ({names[0]}), from {new} ({names[1]})"
    if most is not None and most < limit:
        state = "regression"
    elif least is not None and (least >= limit or (most is not None and most > 1.0)):
        state = "pass"
    elif least is None or most is None:
        said += ": too few levels have passed or failed"
    else:
        said += ": lower, but by less than the tolerance"
    return CapacityFinding(config_hash, state, said, limit, least, most)
