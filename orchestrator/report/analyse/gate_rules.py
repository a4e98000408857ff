"""The gate's rules as data: typed, loaded from YAML, each mistake named with its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from orchestrator.errors import ConfigError
from orchestrator.report.analyse.scope import Condition, When

STATISTICS = ("median", "mean", "min", "max", "p95", "p99")


@dataclass(frozen=True)
class Completes:
    """A trial of which the baseline has a valid attempt must have one again."""

    when: When = field(default_factory=dict)
    kind: str = "completes"


@dataclass(frozen=True)
class Difference:
    """No regression, metric by metric, as :mod:`orchestrator.statistics.judge` finds them."""

    metrics: tuple[str, ...]
    when: When = field(default_factory=dict)
    kind: str = "difference"


@dataclass(frozen=True)
class Change:
    """A statistic may rise or fall by at most so much of the baseline's (0.12 is 12 %)."""

    metric: str
    statistic: str = "median"
    max_increase: float | None = None
    max_decrease: float | None = None
    when: When = field(default_factory=dict)
    kind: str = "change"


@dataclass(frozen=True)
class Limit:
    """A statistic of the new attempts must lie within absolute bounds, in the metric's SI unit."""

    metric: str
    statistic: str = "median"
    at_most: float | None = None
    at_least: float | None = None
    when: When = field(default_factory=dict)
    kind: str = "limit"


@dataclass(frozen=True)
class LongOverShort:
    """A statistic at long output over the same at short output, the rest of the trial equal.

    ``by`` is the configuration value that makes long and short, by their conditions.
    """

    metric: str
    by: str
    short: Condition
    long: Condition
    at_most: float
    statistic: str = "median"
    when: When = field(default_factory=dict)
    kind: str = "long_over_short"


Rule: TypeAlias = Completes | Difference | Change | Limit | LongOverShort

KINDS: dict[str, type[Rule]] = {
    "completes": Completes,
    "difference": Difference,
    "change": Change,
    "limit": Limit,
    "long_over_short": LongOverShort,
}


@dataclass(frozen=True)
class RuleSet:
    """Rules that all must hold."""

    name: str
    rules: tuple[Rule, ...]
    description: str = ""


def load_rules(path: Path) -> RuleSet:
    """Rules from a YAML file.

    Raises
    ------
    ConfigError
        The file is not there, is no YAML, or a rule in it is not known or lacks something.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        known = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(
            "no such gate rules", where=str(path), fix=f"Known here: {', '.join(known) or 'none'}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}", where=str(path)) from None
    return rules_from(data, name=path.stem, where=str(path))


def rules_from(data: Any, *, name: str = "rules", where: str = "gate rules") -> RuleSet:
    """Rules from plain data; :class:`ConfigError` says what is wrong and where."""
    given = _mapping(data, where)
    _known(given, [f.name for f in fields(RuleSet) if f.name != "name"], where)
    listed = given.get("rules")
    if not isinstance(listed, list) or not listed:
        raise ConfigError("rules must be a list with at least one rule", where=where)
    rules = tuple(_rule(entry, f"{where}: rules[{i}]") for i, entry in enumerate(listed))
    return RuleSet(
        name=name,
        rules=rules,
        description=_text(given.get("description", ""), f"{where}: description"),
    )


def _rule(data: Any, where: str) -> Rule:
    given = dict(_mapping(data, where))
    kind = given.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError(f"unknown kind {kind!r}", where=where, fix=f"Known: {', '.join(KINDS)}")
    where = f"{where} ({kind})"
    known = [f for f in fields(KINDS[kind]) if f.name != "kind"]
    _known(given, [f.name for f in known], where)
    missing = [
        f.name
        for f in known
        if f.default is MISSING and f.default_factory is MISSING and f.name not in given
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing", where=where)
    rule: Rule = KINDS[kind](
        **{key: _field(key, value, f"{where}: {key}") for key, value in given.items()}
    )
    if isinstance(rule, Change) and rule.max_increase is None and rule.max_decrease is None:
        raise ConfigError("needs max_increase or max_decrease", where=where)
    if isinstance(rule, Limit) and rule.at_most is None and rule.at_least is None:
        raise ConfigError("needs at_most or at_least", where=where)
    return rule


def _field(key: str, value: Any, where: str) -> Any:
    if key == "metrics":
        if not isinstance(value, list) or not value:
            raise ConfigError("must be a list of metric names", where=where)
        return tuple(_text(name, where) for name in value)
    if key == "when":
        return {
            _text(path, where): _condition(item, f"{where}.{path}")
            for path, item in _mapping(value, where).items()
        }
    if key in ("short", "long"):
        return _condition(value, where)
    if key == "statistic":
        if value not in STATISTICS:
            raise ConfigError(
                f"unknown statistic {value!r}", where=where, fix=f"Known: {', '.join(STATISTICS)}"
            )
        return value
    if key in ("metric", "by"):
        return _text(value, where)
    return _number(value, where, -math.inf if key in ("at_most", "at_least") else 0.0)


def _condition(value: Any, where: str) -> Condition:
    if isinstance(value, Mapping):
        _known(value, ["at_least", "at_most"], where)
        if not value:
            raise ConfigError("needs at_least or at_most", where=where)
        bounds = {str(k): _number(v, f"{where}.{k}") for k, v in value.items()}
        return Condition(at_least=bounds.get("at_least"), at_most=bounds.get("at_most"))
    return Condition(values=tuple(value) if isinstance(value, list) else (value,))


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"must be a mapping, not {type(data).__name__}", where=where)
    return data


def _known(given: Mapping[str, Any], known: list[str], where: str) -> None:
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        # Imported here: only a mistake needs it.
        from difflib import get_close_matches

        close = get_close_matches(unknown[0], known, n=1)
        meant = f"Did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"unknown key {unknown[0]!r}", where=where, fix=f"{meant}Known: {', '.join(known)}"
        )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"must be text, not {value!r}", where=where)
    return value


def _number(value: Any, where: str, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number, above ``least`` unless that is 0 (which it may be), below ``most``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"must be a number, not {value!r}", where=where)
    if not (value > least or value == least == 0.0) or not value < most:
        bounds = f"between {least:g} and {most:g}" if math.isfinite(most) else f"above {least:g}"
        raise ConfigError(f"must be {bounds}, not {value:g}", where=where)
    return float(value)
