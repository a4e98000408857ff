"""Decides whether new measurements may pass: rules as data in, an exit code and its reasons out.

::

    exit code   0 pass   1 regression   2 inconclusive   3 incomparable

The worst row decides, in the order 1, 3, 2, 0. What a ratio means is
:mod:`orchestrator.statistics.judge`'s to say, as in every view; here its regressions are corrected
for their number by Holm's method, so that the chance of any false one stays 5 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.errors import ConfigError, nearest
from orchestrator.measure.metric import MetricSpec
from orchestrator.measure.registry import TASKS
from orchestrator.measure.vocabulary import VOCABULARY
from orchestrator.report.analyse.compare import against
from orchestrator.report.analyse.gate_capacity import CapacityFinding, capacity_findings
from orchestrator.report.analyse.gate_rules import (
    Capacity,
    Change,
    Completes,
    Condition,
    Difference,
    Limit,
    LongOverShort,
    Rule,
    RuleSet,
    all_but,
    applies,
    has_path,
    value_at,
)
from orchestrator.report.analyse.labels import short_hash
from orchestrator.report.analyse.measured import (
    in_several_units,
    metric_of,
    not_sustained,
    of_one_class,
    samples_of,
    spec_of,
    statistic_of,
    valid,
    why_no_ratio,
)
from orchestrator.report.analyse.pairing import Attempts, Chosen, Configs, choose, pair
from orchestrator.statistics.bootstrap import holm
from orchestrator.statistics.judge import CONFIDENCE

EXIT_CODES = {"pass": 0, "regression": 1, "inconclusive": 2, "incomparable": 3}
_SIDES = ("the baseline", "new")
_WORST_FIRST = ("regression", "incomparable", "inconclusive", "pass")


@dataclass(frozen=True)
class GateRow:
    """One rule applied to one trial and metric.

    Attributes
    ----------
    state : str
        ``pass``, ``regression``, ``inconclusive``, ``incomparable``, or ``skipped`` where the rule
        has nothing to say and does not count.
    value, limit : float or None
        What was seen (a ratio for ``difference`` and ``change``) and what it was held to; of a
        ``capacity`` the ratio is only known to lie between ``ci_low`` and ``ci_high``.
    p_value : float or None
        Of a statistical rule, adjusted by Holm's method.
    """

    rule: str
    hash: str
    metric: str | None
    state: str
    value: float | None = None
    limit: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class GateResult:
    """What the gate says, and why.

    Attributes
    ----------
    rules : str
        Name of the rule set.
    rows : tuple of GateRow
        A rule applied to a metric of a trial each.
    reason : str or None
        Why nothing could be judged.
    specs : dict of str to MetricSpec
        What the metrics of the rows are.
    """

    rules: str
    rows: tuple[GateRow, ...]
    reason: str | None = None
    specs: dict[str, MetricSpec] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """``pass``, ``regression``, ``inconclusive`` or ``incomparable``."""
        states = {row.state for row in self.rows} - {"skipped"}
        if not states:
            # A gate that compared nothing has shown nothing.
            return "incomparable"
        return next(state for state in _WORST_FIRST if state in states)

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regression, 2 inconclusive, 3 incomparable."""
        return EXIT_CODES[self.state]

    def counts(self) -> dict[str, int]:
        """Rows by state."""
        return dict(Counter(row.state for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "rules": self.rules,
            "state": self.state,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "counts": self.counts(),
            "rows": [asdict(row) for row in self.rows],
        }


def gate(
    new: Attempts,
    base: Attempts,
    rules: RuleSet,
    *,
    configs: Configs | None = None,
    noise: float | None = None,
    allow_different: bool = False,
) -> GateResult:
    """Hold new attempts to the rules, against a baseline's.

    Parameters
    ----------
    new, base : mapping of config hash to attempts
    rules : RuleSet
    configs : mapping of config hash to identity, optional
        What rules with ``when`` or ``by`` look at; without it those are inconclusive.
    noise : float, optional
        Relative A/A noise recorded for this hardware.
    allow_different : bool
        Compare across hardware and weights.
    """
    pairs = pair(base, new, configs)
    if not pairs and not any(isinstance(rule, Capacity) for rule in rules.rules):
        return GateResult(rules.name, (), "the baseline and the new attempts share no trial")
    trials = [
        _Pair(
            hash_new,
            new[hash_new],
            base[hash_base],
            choose(
                base[hash_base],
                new[hash_new],
                allow_different=allow_different,
                configs=((configs or {}).get(hash_base), (configs or {}).get(hash_new)),
                names=_SIDES,
            ),
            None if configs is None else configs.get(hash_new),
        )
        for hash_base, hash_new in pairs
    ]
    rows: list[GateRow] = []
    for rule in rules.rules:
        rows += _about_nothing(rule, trials)
        if isinstance(rule, LongOverShort | Capacity):
            if isinstance(rule, LongOverShort):
                made = list(_long_over_short(rule, trials))
            else:
                found = capacity_findings(
                    *(rule, base, new, configs or {}),
                    noise=noise,
                    allow_different=allow_different,
                    names=_SIDES,
                )
                made = [_capacity(each) for each in found]
            rows += made or [_unused(rule)]
            continue
        for trial in trials:
            about = applies(rule.when, trial.config)
            if about is None:
                names = _metrics_of(rule)
                known = f"configuration of {short_hash(trial.hash)} unknown"
                rows.extend(
                    GateRow(rule.kind, trial.hash, n, "inconclusive", reason=known) for n in names
                )
            elif about:
                rows.extend(_apply(rule, trial, noise))
    tested = _corrected(rows)
    paired = {h for both in pairs for h in both} | (new.keys() & base.keys())
    for side, state in ((new, "no baseline"), (base, "not measured again")):
        tested += [
            GateRow("paired", h, None, "skipped", reason=state) for h in side if h not in paired
        ]
    reports = [report for trial in trials for report in (*trial.base, *trial.new)]
    metrics = dict.fromkeys(row.metric for row in tested if row.metric is not None)
    specs = {metric: spec_of(reports, metric) for metric in metrics}
    return GateResult(rules.name, tuple(tested), _nothing_judged(tested), specs)


def _nothing_judged(rows: Sequence[GateRow]) -> str | None:
    """Why no rule said anything, by what none of them found; None where one did."""
    if any(row.state != "skipped" for row in rows):
        return None
    missing = dict.fromkeys(row.metric for row in rows if row.metric is not None)
    found = f": no {', '.join(missing)} was measured" if missing else ""
    return f"no rule had data to judge{found}"


@dataclass(frozen=True)
class _Pair:
    hash: str
    new: Sequence[AttemptReport]
    base: Sequence[AttemptReport]
    chosen: Chosen
    config: Mapping[str, Any] | None


def _apply(
    rule: Completes | Difference | Change | Limit,
    trial: _Pair,
    noise: float | None,
) -> Iterator[GateRow]:
    if isinstance(rule, Completes):
        yield _completes(trial)
    elif isinstance(rule, Difference):
        yield from _difference(rule, trial, noise)
    elif isinstance(rule, Change):
        yield _change(rule, trial)
    else:
        yield _limit(rule, trial)


def _completes(trial: _Pair) -> GateRow:
    row = GateRow("completes", trial.hash, None, "pass")
    if not any(report.outcome is Outcome.OK for report in trial.base):
        return replace(row, state="incomparable", reason="the baseline has no attempt that is ok")
    # That it finished under earlier conditions says nothing of the newest.
    new = of_one_class(trial.new)
    if any(report.outcome is Outcome.OK for report in new):
        return row
    ended = Counter(report.outcome for report in new)
    last = max(new, key=lambda r: (r.number, r.started_at), default=None)
    # Lost and cancelled attempts, and invalid ones, say nothing about the code under test.
    blameless = {Outcome.LOST, Outcome.CANCELLED, Outcome.INVALID}
    state = "incomparable" if set(ended) <= blameless else "regression"
    why = last.reason if last is not None and last.reason else "no reason given"
    counted = ", ".join(f"{n} {outcome.value}" for outcome, n in ended.items()) or "no attempt"
    return replace(row, state=state, reason=f"no attempt is ok ({counted}): {why}")


def _difference(rule: Difference, trial: _Pair, noise: float | None) -> Iterator[GateRow]:
    both = [*trial.base, *trial.new]
    for name in rule.metrics:
        if all(metric_of(report, name) is None for report in both):
            continue
        spec = spec_of(both, name)
        row = against(trial.chosen, spec, (trial.hash, trial.hash), noise=noise, names=_SIDES)
        judged = row.judged
        yield GateRow(
            rule.kind,
            trial.hash,
            name,
            judged.finding if judged.finding in EXIT_CODES else "pass",
            judged.ratio,
            1.0 / (1.0 + judged.tau) if spec.better == "higher" else 1.0 + judged.tau,
            judged.ci_low,
            judged.ci_high,
            judged.p_worse,
            judged.reason or row.note,
        )


def _change(rule: Change, trial: _Pair) -> GateRow:
    limit = 1.0 + rule.max_increase if rule.max_increase is not None else None
    floor = 1.0 - rule.max_decrease if rule.max_decrease is not None else None
    row = GateRow(
        "change", trial.hash, rule.metric, "pass", limit=floor if limit is None else limit
    )
    if trial.chosen.reason is not None:
        return replace(row, state="incomparable", reason=trial.chosen.reason)
    sides = trial.chosen.a, trial.chosen.b
    base, new = (samples_of(side, rule.metric) for side in sides)
    if not base and not new and not any(in_several_units(side, rule.metric) for side in sides):
        return replace(row, state="skipped", reason="not measured")
    if missing := why_no_ratio(_SIDES, sides, rule.metric):
        return replace(row, state="incomparable", reason=missing)
    before, after = statistic_of(base, rule.statistic), statistic_of(new, rule.statistic)
    if isinstance(before, str) or isinstance(after, str):
        return _held(row, before if isinstance(before, str) else after, Condition())
    if before == 0.0 <= after:
        grown = after > 0.0 and limit is not None
        return replace(row, state="regression", reason="up from 0") if grown else row
    if before <= 0.0:
        return replace(row, state="incomparable", reason="the baseline is not positive")
    return _held(row, after / before, Condition(at_least=floor, at_most=limit))


def _limit(rule: Limit, trial: _Pair) -> GateRow:
    row = GateRow("limit", trial.hash, rule.metric, "pass")
    row = replace(row, limit=rule.at_least if rule.at_most is None else rule.at_most)
    seen = _new_statistic(trial, rule.metric, rule.statistic)
    return _held(row, seen, Condition(at_least=rule.at_least, at_most=rule.at_most))


def _held(row: GateRow, seen: float | str | None, bounds: Condition) -> GateRow:
    """``row`` with what was seen, held to its bounds; or why nothing was."""
    if seen is None:
        return replace(row, state="skipped", reason="not measured")
    if isinstance(seen, str):
        return replace(row, state="inconclusive", reason=seen)
    if bounds.holds(seen):
        return replace(row, value=seen)
    over = bounds.at_most is not None and seen > bounds.at_most
    reason = "over" if over else "under"
    if row.rule == "change":
        reason = f"up {seen - 1.0:.1%}" if over else f"down {1.0 - seen:.1%}"
    limit = bounds.at_most if over else bounds.at_least
    return replace(row, state="regression", value=seen, limit=limit, reason=reason)


def _long_over_short(rule: LongOverShort, trials: Sequence[_Pair]) -> Iterator[GateRow]:
    """The longest over the shortest output among trials that differ in ``by`` alone."""
    groups: dict[str, list[tuple[float, _Pair]]] = {}
    for trial in trials:
        if trial.config is None:
            continue
        value = value_at(trial.config, rule.by)
        if applies(rule.when, trial.config) and isinstance(value, (int, float)):
            groups.setdefault(all_but(trial.config, rule.by), []).append((value, trial))
    for members in groups.values():
        members.sort(key=lambda member: member[0])
        short = next((trial for v, trial in members if rule.short.holds(v)), None)
        long = next((trial for v, trial in reversed(members) if rule.long.holds(v)), None)
        if short is None or long is None:
            continue
        row = GateRow(rule.kind, long.hash, rule.metric, "pass", limit=rule.at_most)
        seen, least = (_new_statistic(t, rule.metric, rule.statistic) for t in (long, short))
        if not isinstance(seen, float) or not isinstance(least, float):
            reasons = [reason for reason in (seen, least) if isinstance(reason, str)]
            yield _held(row, reasons[0] if reasons else None, Condition())
        elif least <= 0.0:
            yield replace(row, state="incomparable", reason="the short output's is not positive")
        else:
            found = _held(row, seen / least, Condition(at_most=rule.at_most))
            yield replace(found, reason=f"against {short_hash(short.hash)}")


def _unused(rule: LongOverShort | Capacity) -> GateRow:
    metric, axis = (rule.metric, rule.by) if isinstance(rule, LongOverShort) else (None, rule.over)
    reason = f"no trials of both sides that differ in {axis} alone"
    return GateRow(rule.kind, "", metric, "skipped", reason=reason)


def _about_nothing(rule: Rule, trials: Sequence[_Pair]) -> Iterator[GateRow]:
    """A row for what no trial has, in a condition or as a metric: a slip of the hand, mostly."""
    configs = [trial.config for trial in trials if trial.config is not None]
    absent = [p for p in rule.when if configs and not any(has_path(c, p) for c in configs)]
    reasons = [f"no trial has {path}" for path in absent]
    reports = [report for trial in trials for report in (*trial.base, *trial.new)]
    for name in filter(None, _metrics_of(rule)):
        if any(metric_of(report, name) is not None for report in reports):
            continue
        if name.rpartition(".")[2] not in (known := _declared()):
            reasons.append(f"no trial has {name}, and no task declares it. {nearest(name, known)}")
    for reason in reasons:
        yield GateRow(rule.kind, "", None, "skipped", reason=reason)


def _declared() -> set[str]:
    """Metrics of the protocol, and of the tasks that are installed."""
    found = set(VOCABULARY)
    for name in TASKS.names():
        with suppress(ConfigError, ImportError):
            found |= {spec.name for spec in TASKS.find(name).metrics}
    return found


def _capacity(found: CapacityFinding) -> GateRow:
    row = GateRow("capacity", found.hash, None, found.state, limit=found.limit)
    return replace(row, ci_low=found.low, ci_high=found.high, reason=found.reason)


def _corrected(rows: Sequence[GateRow]) -> list[GateRow]:
    """Rows with Holm-adjusted p-values; one that no longer holds becomes inconclusive."""
    tested = [i for i, row in enumerate(rows) if row.p_value is not None]
    adjusted = holm([rows[i].p_value or 0.0 for i in tested])
    out = list(rows)
    for index, p_value in zip(tested, adjusted, strict=True):
        row = replace(out[index], p_value=p_value)
        if row.state == "regression" and p_value > 1.0 - CONFIDENCE:
            reason = f"p = {p_value:.3f} after Holm's correction over {len(tested)} tests"
            row = replace(row, state="inconclusive", reason=reason)
        out[index] = row
    return out


def _new_statistic(trial: _Pair, metric: str, statistic: str) -> float | str | None:
    """The new attempts' figure, or why there is none; None where it was never measured.

    Of several conditions the newest: nothing pools them.
    """
    new = valid(of_one_class(trial.new))
    samples = samples_of(new, metric)
    if not samples:
        return in_several_units(new, metric)
    if lost := not_sustained(new, metric):
        return lost
    return statistic_of(samples, statistic)


def _metrics_of(rule: Rule) -> tuple[str | None, ...]:
    if isinstance(rule, Completes | Capacity):
        return (None,)
    return rule.metrics if isinstance(rule, Difference) else (rule.metric,)
