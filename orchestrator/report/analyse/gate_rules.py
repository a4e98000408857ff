"""The gate's rules as data: typed, loaded from YAML, each mistake named with its place.

A rule may hold of some trials only: conditions on their configuration say of which.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PlainValidator,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from orchestrator.errors import ConfigError, nearest


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Bounds(_Checked):
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _has_room(self) -> _Bounds:
        low, high = self.at_least, self.at_most
        if low is not None and high is not None and low > high:
            raise ValueError(f"nothing is at_least {low:g} and at_most {high:g}")
        return self


class Condition(_Bounds):
    """What a configuration value must be: one of ``values``, or a number within bounds."""

    values: tuple[Any, ...] | None = None

    def holds(self, value: Any) -> bool:
        """Whether ``value`` meets the condition; a value that is no number meets no bound."""
        if self.values is not None:
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )


#: Dotted path in the identity (``task.new_tokens``) to what must hold there.
When: TypeAlias = Mapping[str, Condition]


def applies(when: When, config: Mapping[str, Any] | None) -> bool | None:
    """Whether every condition holds; None where there are some and the configuration is unknown."""
    if not when:
        return True
    if config is None:
        return None
    return all(condition.holds(value_at(config, path)) for path, condition in when.items())


def value_at(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None."""
    node: Any = config
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def has_path(config: Mapping[str, Any], path: str) -> bool:
    """Whether there is anything at a dotted path, None included."""
    parent, _, last = path.rpartition(".")
    node = value_at(config, parent) if parent else config
    return isinstance(node, Mapping) and last in node


def all_but(config: Mapping[str, Any], path: str) -> str:
    """The configuration without the value at ``path``, as a key for trials that differ there."""
    copy: Any = json.loads(json.dumps(config))
    *parents, last = path.split(".")
    node = copy
    for part in parents:
        node = node.get(part, {})
    node.pop(last, None)
    return json.dumps(copy, sort_keys=True)


Statistic: TypeAlias = Literal["median", "mean", "min", "max", "p95", "p99"]


def _condition(given: Any) -> Condition:
    """Bounds, or the value or list of values that is meant."""
    if given == {}:
        raise ValueError("needs at_least or at_most")
    if isinstance(given, dict):
        return Condition(**vars(_Bounds.model_validate(given)))
    return Condition(values=tuple(given) if isinstance(given, list) else (given,))


Given: TypeAlias = Annotated[Condition, PlainValidator(_condition)]


class _Rule(_Checked):
    when: dict[str, Given] = {}


class Completes(_Rule):
    """A trial of which the baseline has a valid attempt must have one again."""

    kind: Literal["completes"] = "completes"


class Difference(_Rule):
    """No regression, metric by metric, as :mod:`orchestrator.statistics.judge` finds them."""

    kind: Literal["difference"] = "difference"
    metrics: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class Change(_Rule):
    """A statistic may rise or fall by at most so much of the baseline's (0.12 is 12 %)."""

    kind: Literal["change"] = "change"
    metric: str
    statistic: Statistic = "median"
    max_increase: NonNegativeFloat | None = None
    # All of it, or more, no positive figure can lose: such a rule would never fail.
    max_decrease: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None

    @model_validator(mode="after")
    def _is_bounded(self) -> Change:
        if self.max_increase is None and self.max_decrease is None:
            raise ValueError("needs max_increase or max_decrease")
        return self


class Limit(_Rule, _Bounds):
    """A statistic of the new attempts must lie within absolute bounds, in the metric's SI unit."""

    kind: Literal["limit"] = "limit"
    metric: str
    statistic: Statistic = "median"

    @model_validator(mode="after")
    def _is_bounded(self) -> Limit:
        if self.at_most is None and self.at_least is None:
            raise ValueError("needs at_most or at_least")
        return self


class LongOverShort(_Rule):
    """A statistic at long output over the same at short output, the rest of the trial equal.

    ``by`` is the configuration value that makes long and short, by their conditions.
    """

    kind: Literal["long_over_short"] = "long_over_short"
    metric: str
    by: str
    short: Given
    long: Given
    at_most: float
    statistic: Statistic = "median"


Latency: TypeAlias = Literal["ttft_s", "tpot_s", "e2e_s"]


class Capacity(_Rule):
    """The highest level whose requests keep limits must not fall by more than the tolerance.

    ``over`` is the number that levels differ in, ``limits`` seconds, ``attainment`` the share of
    requests that keep all of them.
    """

    kind: Literal["capacity"] = "capacity"
    over: str
    limits: Annotated[dict[Latency, PositiveFloat], Field(min_length=1)]
    attainment: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95


Rule: TypeAlias = Completes | Difference | Change | Limit | LongOverShort | Capacity


class _File(_Checked):
    rules: Annotated[
        tuple[Annotated[Rule, Field(discriminator="kind")], ...], Field(strict=False, min_length=1)
    ]
    description: str = ""


class RuleSet(_File):
    """Rules that all must hold."""

    name: str


# Whose keys an unknown one may have meant, by where it stands.
_MODELS: dict[str, type[BaseModel]] = {
    "": _File,
    **{rule.model_fields["kind"].default: rule for rule in get_args(Rule)},
    **dict.fromkeys(("when", "short", "long"), _Bounds),
}


# pydantic's words, which tell of Python's types, as ours.
_WORDS = {
    "missing": "must be given",
    "union_tag_not_found": "{discriminator} must be given",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}, not {tag!r}",
    "too_short": "must have at least {min_length}",
    "model_type": "must be a mapping, not {input!r}",
    "model_attributes_type": "must be a mapping, not {input!r}",
    "dict_type": "must be a mapping, not {input!r}",
    "tuple_type": "must be a list, not {input!r}",
    "string_type": "must be text, not {input!r}",
}


def load_rules(path: Path) -> RuleSet:
    """Rules from a YAML file.

    Raises
    ------
    ConfigError
        The file is not there, is no YAML, or a rule in it is not known or lacks something.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is given twice, of which YAML would keep the last: a rule less."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
            given: list[Any] = []
            for key, _ in node.value:
                if key.value in given:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} is given twice", key.start_mark
                    )
                given.append(key.value)
            return super().construct_mapping(node, deep=deep)

    try:
        data = Loader(path.read_text()).get_single_data()
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
    try:
        return RuleSet(name=name, **vars(_File.model_validate(data)))
    except ValidationError as error:
        raise _refusal(error, where) from None


def _refusal(error: ValidationError, where: str) -> ConfigError:
    """The first mistake that pydantic found: where, what, what to do."""
    found = error.errors(include_url=False)[0]
    kind, path = found["type"], found["loc"]
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    where = ": ".join(filter(None, (where, place)))
    if kind == "extra_forbidden":
        owner = next(
            (_MODELS[str(p)] for p in reversed(path[:-1]) if str(p) in _MODELS), _MODELS[""]
        )
        return ConfigError(
            "unknown key", where=where, fix=nearest(str(path[-1]), owner.model_fields)
        )
    if kind in _WORDS:
        what = _WORDS[kind].format(input=found["input"], **found.get("ctx", {}))
    else:
        what = found["msg"].removeprefix("Value error, ").replace("Input should", "must")
        what += f", not {found['input']!r}" if what.startswith("must") else ""
    return ConfigError(what, where=where or None)
