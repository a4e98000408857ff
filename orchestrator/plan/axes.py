"""One override becomes one fixed choice or one axis; values are counted before they are listed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    FloatRange,
    Glob,
    Override,
    OverrideType,
    RangeSweep,
    ValueType,
)
from hydra.errors import HydraException

from orchestrator.errors import ConfigError, nearest
from orchestrator.plan.messages import condensed
from orchestrator.plan.text_fields import is_text, leaves

COMMAND_LINE = ""  # as the place of an error: none needs to be named
PREFIXES = {
    OverrideType.CHANGE: "",
    OverrideType.ADD: "+",
    OverrideType.FORCE_ADD: "++",
    OverrideType.DEL: "~",
}


@dataclass(frozen=True)
class Fixed:
    """One key with one value. ``prefix`` is ``""``, ``+``, ``++`` or ``~`` as in Hydra."""

    key: str
    value: Any
    prefix: str = ""
    where: str = COMMAND_LINE


@dataclass(frozen=True)
class Axis:
    """One key with several values, listed only when asked for.

    Attributes
    ----------
    count : int
        How many values there are.
    supply : callable
        Lists them.
    """

    key: str
    count: int
    supply: Callable[[], Iterable[Any]]
    prefix: str = ""
    where: str = COMMAND_LINE

    def values(self) -> tuple[Any, ...]:
        """The values in their order; repeated ones are kept (they become duplicates)."""
        return tuple(self.supply())


def axis_of(key: str, values: Sequence[Any], prefix: str = "", where: str = COMMAND_LINE) -> Axis:
    """An axis over listed values; raises :class:`ConfigError` where there are none."""
    if len(values) == 0:
        raise ConfigError(f"axis {key} has no values", where=where, fix=f"Give it some: {key}=a,b")
    return Axis(key, len(values), lambda: values, prefix, where)


def text(value: Any) -> str:
    """A value as a person would type it on the command line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def same(one: Any, other: Any) -> bool:
    """Whether two values are spelled or valued alike (``512`` and ``"512"`` and ``512.0``)."""
    if isinstance(one, bool) or isinstance(other, bool):
        return text(one) == text(other).lower()
    return bool(one == other) or text(one) == text(other)


@lru_cache(maxsize=1)
def _parser() -> OverridesParser:
    return OverridesParser.create()


def parse(line: str, options: Callable[[str], list[str] | None], where: str) -> Fixed | Axis:
    """Read one ``key=value`` in Hydra's override grammar.

    Parameters
    ----------
    line : str
        The override, as typed.
    options : callable
        Options of a config group, None where the key is not a group; globs choose among them.
    where : str
        The sweep file or command line it stands in.

    Raises
    ------
    ConfigError
        Not the grammar, an interval, a glob over something that is not a group, no values.
    """
    override = _understood(line, where)
    key = override.key_or_group
    if override.package is not None:
        key = f"{key}@{override.package}"
    prefix = PREFIXES[override.type]
    text_wanted = options(key) is not None or is_text(key)
    if not override.is_sweep_override():
        value = override.value()
        _check_inside(key, value, where)
        if text_wanted:
            (value,) = _as_written(line, [value])
        return _fixed_or_glob(key, value, options(key), prefix, where)
    if override.is_interval_sweep():
        raise ConfigError(
            f"{line}: an interval has no count", where=where, fix="Use range(start,stop,step)"
        )
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        assert isinstance(override._value, Glob)
        return axis_of(key, _globbed(override._value, key, options(key), where), prefix, where)
    if isinstance(override._value, RangeSweep):
        return _range_axis(override, key, prefix, where)
    values = [override._convert_value(value) for value in override.sweep_iterator()]
    for value in values:
        _check_inside(key, value, where)
    if text_wanted:
        values = _as_written(line, values)
    return axis_of(key, values, prefix, where)


def _understood(line: str, where: str) -> Override:
    """``line`` in Hydra's grammar; a text that the grammar has no room for is quoted for it.

    Its unquoted values hold no ``=``, no letters but ASCII's, no ``#`` and more.
    """
    if not line.strip():
        raise ConfigError("a word is empty", where=where, fix="Write key=value, or leave it out")
    try:
        return _parser().parse_override(line)
    except HydraException as error:
        fix = "Write key=value, or key=a,b to sweep; quote values with commas or spaces"
        quoted = _quoted(line)
        # What is wrong inside choice(...) is not mended by quoting all of it.
        if quoted is not None and "while evaluating" not in str(error):
            try:
                override = _parser().parse_override(quoted)
            except HydraException:
                pass
            else:
                if is_text(override.key_or_group):
                    return override
                fix = f"Quote the value: '{quoted}'"
        raise ConfigError(
            f"cannot read {line!r}: {condensed(str(error))}", where=where, fix=fix
        ) from error


def _quoted(line: str) -> str | None:
    """``key=value`` with its values in quotes; None where it has quotes, or lists, of its own."""
    key, equals, values = line.partition("=")
    parts = values.split(",")
    if not equals or values[:1] in ("[", "{") or any(mark in values for mark in "'\""):
        return None
    if any(not part.strip() or part.endswith("\\") for part in parts):
        return None
    return f"{key}=" + ",".join(f'"{part.strip()}"' for part in parts)


def _as_written(line: str, values: list[Any]) -> list[Any]:
    """``values`` of a key that holds text, those that Hydra made numbers or truths of as typed."""
    written = line.partition("=")[2].strip()
    if written.startswith("choice(") and written.endswith(")"):
        written = written.removeprefix("choice(").removesuffix(")")
    parts = [part.strip() for part in written.split(",")]
    if len(values) == 1:
        parts = [written]
    if len(parts) != len(values):
        return values  # a comma in quotes, or a function: Hydra's reading stands
    return [
        part if isinstance(value, (bool, int, float)) else value
        for part, value in zip(parts, values, strict=True)
    ]


def _check_inside(key: str, value: Any, where: str) -> None:
    """Refuse a number where a mapping holds text: ``2.10`` has become 2.1 by now."""
    if not isinstance(value, dict):
        return
    for path, leaf in leaves(value):
        inner = ".".join([key, *map(str, path)])
        if isinstance(leaf, (bool, int, float)) and is_text(inner):
            raise ConfigError(
                "is text, which a mapping holds in quotes",
                where=f"{where}, {inner}" if where else inner,
                fix=f"Write {inner}=VALUE, or quote it",
            )


def _fixed_or_glob(
    key: str, value: Any, known: list[str] | None, prefix: str, where: str
) -> Fixed | Axis:
    """``quant=fp*`` means ``quant=glob(fp*)``: no option has a star in its name."""
    if known is not None and isinstance(value, str) and any(mark in value for mark in "*?"):
        return axis_of(key, _globbed(Glob(include=[value]), key, known, where), prefix, where)
    return Fixed(key, value, prefix, where)


def _globbed(glob: Glob, key: str, known: list[str] | None, where: str) -> list[str]:
    if known is None:
        raise ConfigError(
            f"{key} is not a config group, and a glob chooses among a group's options",
            where=where,
            fix="List the values instead",
        )
    found = glob.filter(known)
    if not found:
        raise ConfigError(
            f"{key}={','.join(glob.include)} matches no option",
            where=where,
            fix=nearest(",".join(glob.include), known),
        )
    return found


def _range_axis(override: Override, key: str, prefix: str, where: str) -> Axis:
    sweep = override._value
    assert isinstance(sweep, RangeSweep)
    if sweep.step == 0:
        raise ConfigError(f"{override.input_line}: the step is 0", where=where)
    steps = sweep.range()
    if isinstance(steps, FloatRange):
        start, stop, step = (Decimal(v) for v in (steps.start, steps.stop, steps.step))
        count = max(0, math.ceil((stop - start) / step))
    else:
        count = len(steps)
    if count == 0:
        raise ConfigError(
            f"axis {key} has no values: {override.input_line}",
            where=where,
            fix="range(start,stop) leaves its stop out",
        )
    return Axis(key, count, override.sweep_iterator, prefix, where)


def from_file(key: str, spec: Any, options: Callable[[str], list[str] | None], where: str) -> Axis:
    """Read one entry of a sweep file's ``axes``: text in the grammar, or a plain list.

    Raises
    ------
    ConfigError
        As :func:`parse`; also for a mapping.
    """
    if isinstance(spec, list):
        name = key.lstrip("+")
        return axis_of(name, spec, key.removesuffix(name), where)
    if isinstance(spec, dict):
        raise ConfigError(
            f"axis {key} is a mapping", where=where, fix='Write a list, or text such as "a,b"'
        )
    if spec is None or (isinstance(spec, str) and not spec.strip()):
        raise ConfigError(
            f"axis {key} has no values", where=where, fix='Write a list, or text such as "a,b"'
        )
    found = parse(f"{key}={text(spec)}", options, where)
    if isinstance(found, Axis):
        return found
    return axis_of(found.key, [found.value], found.prefix, where)
