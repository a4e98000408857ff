"""A sweep file and a command line, put together: what is fixed, what varies, what is left out.

The command line beats the file: a fixed value narrows an axis, several values replace it, and an
axis that varies together with others (``zip``) takes them along.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from orchestrator.errors import ConfigError, nearest
from orchestrator.plan.axes import (
    COMMAND_LINE,
    Axis,
    Fixed,
    axis_of,
    from_file,
    parse,
    same,
    text,
)
from orchestrator.plan.compose import Composer
from orchestrator.plan.schema import IDENTITY_KEYS, SETTING_KEYS, SweepConfig, field_problems

LIMIT = 1_000_000
ADHOC = "adhoc"


@dataclass(frozen=True)
class Block:
    """Axes that vary together. ``columns`` holds each axis's values, all of one length."""

    axes: tuple[Axis, ...]
    columns: tuple[tuple[Any, ...], ...] | None = None

    @property
    def count(self) -> int:
        return self.axes[0].count if self.columns is None else len(self.columns[0])

    def rows(self) -> list[tuple[Any, ...]]:
        columns = self.columns or tuple(axis.values() for axis in self.axes)
        return list(zip(*columns, strict=True))


@dataclass(frozen=True)
class Space:
    """Everything a plan expands from.

    Attributes
    ----------
    fixed : tuple of Fixed
        In the order in which they apply.
    blocks : tuple of Block
        The last one varies fastest.
    narrowed : frozenset of str
        Axes of the file that the command line changed.
    """

    name: str
    description: str
    fixed: tuple[Fixed, ...]
    blocks: tuple[Block, ...]
    exclude: tuple[Mapping[str, Any], ...] = ()
    baseline: Mapping[str, Any] = field(default_factory=dict)
    narrowed: frozenset[str] = frozenset()

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(axis for block in self.blocks for axis in block.axes)

    @property
    def count(self) -> int:
        """Combinations before ``exclude``."""
        return math.prod(block.count for block in self.blocks)


def read(overrides: Sequence[str], composer: Composer) -> Space:
    """Parse a command line and the sweep it names.

    Raises
    ------
    ConfigError
        Anything in either that cannot be meant.
    """
    items = [parse(line, _options(composer), COMMAND_LINE) for line in overrides]
    sweep, rest = _sweep_config(items, composer)
    where = f"sweep {sweep['name']}" if sweep["name"] else COMMAND_LINE
    sweep_set = [parse_set(key, value, where) for key, value in sweep["set"].items()]
    if sweep["repeats"] is not None:
        sweep_set.append(Fixed("repeats", sweep["repeats"], where=where))
    file_axes = [from_file(k, spec, _options(composer), where) for k, spec in sweep["axes"].items()]
    for axis in file_axes:
        if any(axis.key == item.key for item in sweep_set):
            raise ConfigError(f"{axis.key} is both set and an axis", where=where)
    fixed, blocks, narrowed = _layered(sweep_set, file_axes, rest, sweep["zip"], where)
    space = Space(
        name=sweep["name"] or ADHOC,
        description=sweep["description"],
        fixed=tuple(fixed),
        blocks=tuple(blocks),
        exclude=tuple(_conditions(sweep["exclude"], blocks, where)),
        baseline=sweep["baseline"],
        narrowed=narrowed,
    )
    for axis in space.axes:
        _require_identity(axis, composer)
    if space.count > LIMIT and not sweep["allow_large"]:
        sizes = " by ".join(f"{block.axes[0].key} {block.count:,}" for block in blocks)
        raise ConfigError(
            f"{space.count:,} trials ({sizes}) is more than {LIMIT:,}",
            where=where,
            fix="Narrow an axis, or say sweep.allow_large=true",
        )
    return space


def parse_set(key: str, value: Any, where: str) -> Fixed:
    """One entry of a sweep file's ``set``; text is taken as it is, never as several values."""
    name = key.lstrip("+")
    return Fixed(name, value, key.removesuffix(name), where)


def _options(composer: Composer) -> Any:
    return lambda key: composer.options(key) if composer.is_group(key) else None


def _sweep_config(
    items: Sequence[Fixed | Axis], composer: Composer
) -> tuple[dict[str, Any], list[Fixed | Axis]]:
    """The chosen sweep's file with ``sweep.*`` of the command line on it, and the other items."""
    from omegaconf import OmegaConf

    from orchestrator.plan.messages import translated
    from orchestrator.plan.values import assign

    chosen: str | None = None
    values: list[Fixed] = []
    rest: list[Fixed | Axis] = []
    for item in items:
        if item.key != "sweep" and not item.key.startswith("sweep."):
            rest.append(item)
        elif isinstance(item, Axis) or (item.key == "sweep" and not isinstance(item.value, str)):
            raise ConfigError("one sweep at a time", where=item.key, fix="Write +sweep=NAME")
        elif chosen is not None and item.key == "sweep":
            raise ConfigError(
                f"{chosen} and {text(item.value)} are two sweeps", fix="Run them in turn"
            )
        elif item.key == "sweep":
            chosen = text(item.value)
            known = composer.options("sweep")
            if chosen not in known:
                raise ConfigError(f"no sweep {chosen!r}", where="sweep", fix=nearest(chosen, known))
        else:
            values.append(item)
    config = composer.compose_sweep(chosen)
    for value in values:
        # Mappings here (`sweep.baseline={quant: fp32}`) have keys that no schema knows.
        open_mapping = isinstance(value.value, dict) and not value.prefix
        assign(config, replace(value, prefix="+") if open_mapping else value)
    with translated(f"sweep/{chosen}.yaml" if chosen else COMMAND_LINE):
        tree = OmegaConf.to_container(config.sweep, resolve=True)
    assert isinstance(tree, dict)
    sweep = {str(key): value for key, value in tree.items()}
    for key, problem in field_problems(SweepConfig, sweep, "sweep"):
        raise ConfigError(problem, where=key)
    sweep["name"] = sweep["name"] or chosen
    return sweep, rest


def _layered(
    sweep_set: Sequence[Fixed],
    file_axes: Sequence[Axis],
    items: Sequence[Fixed | Axis],
    zips: Any,
    where: str,
) -> tuple[list[Fixed], list[Block], frozenset[str]]:
    fixed = {item.key: item for item in sweep_set}
    axes = {axis.key: axis for axis in file_axes}
    declared = dict(axes)
    for item in items:
        if item.key in fixed and fixed[item.key].where != item.where:
            # The file refined the option it chose itself; the command line chose another one.
            inside = [key for key in fixed if key.startswith(f"{item.key}.")]
            for key in inside:
                if fixed[key].where != item.where:
                    del fixed[key]
        if isinstance(item, Axis):
            fixed.pop(item.key, None)
            axes[item.key] = item
        elif item.key in axes:
            if item.value == "":
                raise ConfigError(
                    f"axis {item.key} has no values", where=item.where, fix=f"{item.key}=a,b"
                )
            axes[item.key] = axis_of(item.key, [item.value], item.prefix)
        else:
            fixed.pop(item.key, None)  # a later word of the command line applies later
            fixed[item.key] = item
    narrowed = frozenset(key for key in declared if axes[key] is not declared[key])
    blocks = _blocks(axes, declared, narrowed, zips, where)
    return list(fixed.values()), blocks, narrowed


def _blocks(
    axes: Mapping[str, Axis],
    declared: Mapping[str, Axis],
    narrowed: frozenset[str],
    zips: Any,
    where: str,
) -> list[Block]:
    together: dict[str, tuple[str, ...]] = {}
    for keys in zips:
        if not isinstance(keys, list) or len(keys) < 2:
            raise ConfigError(
                "zip is a list of lists of axes", where=where, fix="zip: [[axis, axis], …]"
            )
        for key in keys:
            if key not in axes:
                raise ConfigError(
                    f"zip names {key}, not an axis", where=where, fix=nearest(str(key), axes)
                )
            if key in together:
                raise ConfigError(f"{key} is in more than one zip", where=where)
            together[key] = tuple(keys)
    blocks: list[Block] = []
    done: set[str] = set()
    for key, axis in axes.items():
        if key in done:
            continue
        keys = together.get(key, (key,))
        done.update(keys)
        if len(keys) == 1:
            blocks.append(Block((axis,)))
        else:
            blocks.append(_zipped(keys, axes, declared, narrowed, where))
    return blocks


def _zipped(
    keys: tuple[str, ...],
    axes: Mapping[str, Axis],
    declared: Mapping[str, Axis],
    narrowed: frozenset[str],
    where: str,
) -> Block:
    members = tuple(axes[key] for key in keys)
    changed = [key for key in keys if key in narrowed]
    if changed and len(changed) < len(keys):
        # Narrowing one member takes the others along, row by row.
        rows = _zip_rows([declared[key] for key in keys], where)
        for key in changed:
            place, wanted = keys.index(key), axes[key].values()
            missing = [v for v in wanted if not any(same(v, row[place]) for row in rows)]
            if missing:
                raise ConfigError(
                    f"{key}={text(missing[0])} is not in the zip with "
                    f"{', '.join(k for k in keys if k != key)}",
                    where=where,
                    fix=nearest(text(missing[0]), [text(row[place]) for row in rows]),
                )
            rows = [row for row in rows if any(same(v, row[place]) for v in wanted)]
        if not rows:
            raise ConfigError(f"zip of {', '.join(keys)} is empty as narrowed", where=where)
    else:
        rows = _zip_rows(members, where)
    return Block(members, tuple(zip(*rows, strict=True)))


def _zip_rows(axes: Sequence[Axis], where: str) -> list[tuple[Any, ...]]:
    if len({axis.count for axis in axes}) > 1:
        sizes = ", ".join(f"{axis.key} has {axis.count}" for axis in axes)
        raise ConfigError(
            f"zip of unequal lengths: {sizes}", where=where, fix="Give each as many values"
        )
    if axes[0].count > LIMIT:
        raise ConfigError(f"zip of {axes[0].count:,} rows is more than {LIMIT:,}", where=where)
    return list(zip(*(axis.values() for axis in axes), strict=True))


def _conditions(exclude: Any, blocks: Sequence[Block], where: str) -> Iterator[Mapping[str, Any]]:
    keys = [axis.key for block in blocks for axis in block.axes]
    for condition in exclude:
        if not isinstance(condition, dict) or not condition:
            raise ConfigError(
                "exclude is a list of {axis: value}", where=where, fix=f"Got {text(condition)}"
            )
        for key in condition:
            if key not in keys:
                raise ConfigError(
                    f"exclude names {key}, which is not an axis",
                    where=where,
                    fix=nearest(str(key), keys),
                )
        yield condition


def matches(values: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    """Whether a combination fits every entry of ``condition`` (a value, a glob, or a list)."""
    return all(_fits(values[key], wanted) for key, wanted in condition.items())


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return same(value, wanted) or any(_fits(value, item) for item in wanted)
    if isinstance(wanted, str) and any(mark in wanted for mark in "*?["):
        return fnmatchcase(text(value), wanted)
    return same(value, wanted)


def _require_identity(axis: Axis, composer: Composer) -> None:
    """Refuse an axis whose values would all be one and the same trial."""
    root = axis.key.split(".")[0].split("/")[0].split("@")[0]
    if root in IDENTITY_KEYS or root not in (*SETTING_KEYS, "sweep", "hydra"):
        return
    fixes = {
        "resources.cpus": "Sweep device.threads",
        "resources.accelerator": "Run the sweep once on each, and `compare` the two by hardware",
        "repeats": "Say how often with repeats=N",
    }
    raise ConfigError(
        f"{axis.key} is not part of a trial's identity, so its values cannot be swept",
        where=axis.where,
        fix=fixes.get(axis.key, "Run the sweep once for each value"),
    )
