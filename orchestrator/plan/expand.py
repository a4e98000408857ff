"""From a command line to a plan: read, compose each choice of groups once, expand, hash, dedup."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from orchestrator.attempt import AxisValue, Trial
from orchestrator.errors import ConfigError, nearest
from orchestrator.measure.registry import find_task
from orchestrator.plan.axes import text
from orchestrator.plan.choices import SHORT, check_axis, choice_of, split, without_hydra
from orchestrator.plan.compose import Composer
from orchestrator.plan.composition import Composition, Mixture, put
from orchestrator.plan.effect import Effects
from orchestrator.plan.identity import (
    check_together,
    check_values,
    config_hash,
    copied,
    kinds_of,
    left_out,
    rebuild,
    without_added,
)
from orchestrator.plan.places import ROOT_CONFIG
from orchestrator.plan.plan import Plan
from orchestrator.plan.schema import (
    IDENTITY_KEYS,
    SETTING_KEYS,
    ClusterConfig,
    RootConfig,
    Settings,
)
from orchestrator.plan.sweep import ADHOC, Space, matches, read
from orchestrator.plan.trial import infeasible_reason, resources_of

DeviceKind = Callable[[ClusterConfig], str]

# Settings that a group chosen along an axis may vary: they belong to a trial, not to the plan.
PER_TRIAL = ("resources", "timeout_s")


def build(
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[Path | str] = (),
    device_kind: DeviceKind,
    config_name: str = ROOT_CONFIG,
) -> Plan:
    """Everything that a command line means, before anything runs.

    Parameters
    ----------
    overrides : sequence of str
        In Hydra's grammar; several values make an axis.
    config_dirs : sequence of path
        A person's own directories of groups.
    device_kind : callable
        Takes the ``ClusterConfig`` and returns ``"cpu"`` or ``"cuda"``; called at most once, and
        only where ``device=auto`` is to be decided.
    config_name : str
        Root file, without ``.yaml``.

    Raises
    ------
    ConfigError
        For everything that cannot be meant, in one line.
    """
    return _Expansion(*_read(overrides, config_dirs, config_name), device_kind).plan()


def settings_of(
    overrides: Sequence[str],
    *,
    of: str = "",
    reads: Collection[str] = SETTING_KEYS,
    config_dirs: Sequence[Path | str] = (),
    config_name: str = ROOT_CONFIG,
) -> Settings:
    """Only the settings of a command line (``tracking.root=…``), for commands that plan nothing.

    Parameters
    ----------
    of, reads : str, collection of str
        The command, and the settings that change something for it.

    Raises
    ------
    ConfigError
        As :func:`build`, and where a word says what is measured, or anything else that the command
        would ignore.
    """
    space, composer = _read(overrides, config_dirs, config_name)
    keys = [item.key for item in space.fixed]
    keys += [axis.key for block in space.blocks for axis in block.axes]
    for key in keys:
        if space.name != ADHOC or re.split(r"[./]", key)[0] in IDENTITY_KEYS:
            what = f"+sweep={space.name}" if space.name != ADHOC else key
            raise ConfigError(
                f"{what} is part of the trial, which is fixed here",
                fix="Change only settings, such as tracking.root=…",
            )
        if re.split(r"[./]", key)[0] not in reads:
            raise ConfigError(f"has no effect on {of}", where=key, fix="Leave it out")
    groups, values = split(space.fixed, composer)
    return Composition(composer.compose(groups), values, ()).settings()


def _read(
    overrides: Sequence[str], config_dirs: Sequence[Path | str], config_name: str
) -> tuple[Space, Composer]:
    words, searched = without_hydra(overrides)
    composer = Composer([*config_dirs, *searched], config_name)
    return read(words, composer), composer


def plan_of(identity: Mapping[str, Any], settings: Settings) -> Plan:
    """A plan of exactly one stored configuration.

    Raises
    ------
    ConfigError
        As :func:`orchestrator.plan.identity.rebuild`.
    """
    tree = rebuild(identity)
    trial = _trial(tree, {}, settings)
    return Plan(
        sweep=f"reproduce-{trial.hash[:12]}",
        description=f"A new attempt of {trial.hash[:12]}",
        trials=(trial,),
        settings=settings,
    )


def at_level(trial: Trial, key: str, value: float, settings: Settings) -> Trial:
    """The trial with another value of a number, as an axis of that name would give it.

    Raises
    ------
    ConfigError
        The value is out of bounds.
    """
    tree = copied(trial.identity)
    put(tree, key, value)
    check_values(tree, only=key)
    return _trial(without_added(tree), {**trial.axes, key: value}, settings)


def number_at(trial: Trial, key: str) -> float:
    """The value of a number of a trial, by its dotted name.

    Raises
    ------
    ConfigError
        There is no number of this name.
    """
    node: Any = trial.identity
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    node = left_out(trial.identity).get(key) if node is None else node
    if isinstance(node, bool) or not isinstance(node, (int, float)):
        fix = nearest(key, _numbers(trial.identity))
        raise ConfigError("is no number of this trial", where=f"search.over={key}", fix=fix)
    return node


def _numbers(identity: Mapping[str, Any]) -> list[str]:
    return [
        f"{group}.{name}"
        for group, values in identity.items()
        if isinstance(values, Mapping)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def bounds_at(trial: Trial, key: str) -> tuple[float | None, float | None]:
    """The lowest and the highest value that a number of a trial may have, where it has bounds."""
    group, _, name = key.partition(".")
    kind = kinds_of(trial.identity).get(group)
    for item in fields(kind) if kind else ():
        if item.name == name:
            return item.metadata.get("low"), item.metadata.get("high")
    return None, None


class _Expansion:
    """Walks a space combination by combination; composes lazily, so excluded ones cost nothing."""

    def __init__(self, space: Space, composer: Composer, device_kind: DeviceKind) -> None:
        self._space = space
        self._composer = composer
        self._ask_device_kind = device_kind
        self._groups, self._values = split(space.fixed, composer)
        self._axes = space.axes
        self._is_group = [composer.is_group(axis.key) for axis in self._axes]
        for axis, is_group in zip(self._axes, self._is_group, strict=True):
            check_axis(axis, is_group, composer)
        kinds = list(zip(self._axes, self._is_group, strict=True))
        self._group_axes = [axis for axis, is_group in kinds if is_group]
        self._value_axes = [axis for axis, is_group in kinds if not is_group]
        self._sources: dict[tuple[str, ...], tuple[Mixture, Settings]] = {}
        self._composed: dict[tuple[str, ...], Composition] = {}
        self._first: tuple[Composition, Settings] | None = None

    @cached_property
    def _auto(self) -> str:
        """What ``device=auto`` is. Looking at the cluster costs, and a plan has one of it."""
        assert self._first is not None
        kind = self._ask_device_kind(self._first[1].cluster)
        if kind not in ("cpu", "cuda"):
            raise ConfigError(f"device=auto came out as {kind!r}", where="device.kind")
        return kind

    def plan(self) -> Plan:
        trials: dict[str, Trial] = {}
        duplicates = 0
        seen: list[dict[str, None]] = [{} for _ in self._axes]
        usual = {**vars(RootConfig()), **self._composer.default_groups}
        effects = Effects(self._space.fixed, self._axes, usual)
        for row in self._combinations():
            tree, axes, settings = self._resolve(row)
            digest = config_hash(tree)
            for values, value in zip(seen, axes.values(), strict=True):
                values[text(value)] = None
            if digest in trials:
                duplicates += 1
                continue
            trials[digest] = _trial(tree, axes, settings, digest)
            assert self._first is not None
            effects.add(tree, self._first[0].settings_tree)
        if not trials:
            raise ConfigError(
                "exclude leaves no trial", where=f"sweep {self._space.name}", fix="Loosen it"
            )
        assert self._first is not None
        return Plan(
            sweep=self._space.name,
            description=self._space.description,
            trials=tuple(trials.values()),
            settings=self._first[1],
            baseline=self._baseline(trials.values()),
            axes={axis.key: tuple(values) for axis, values in zip(self._axes, seen, strict=True)},
            duplicates=duplicates,
            notes=effects.notes(),
        )

    def _combinations(self) -> Iterator[list[tuple[int, Any]]]:
        """For each combination that is not excluded: position and value on every axis."""
        keys = [axis.key for axis in self._axes]
        exclude = self._space.exclude
        idle = list(exclude)
        rows = [list(enumerate(block.rows())) for block in self._space.blocks]
        for combination in product(*rows):
            row = [(number, value) for number, values in combination for value in values]
            if exclude:
                written = {key: value for key, (_, value) in zip(keys, row, strict=True)}
                fitting = [condition for condition in exclude if matches(written, condition)]
                idle = [condition for condition in idle if condition not in fitting]
                if fitting:
                    continue
            yield row
        for condition in idle:
            # `+sweep=quant quant=nf4` leaves out what others are excluded of on purpose.
            if not condition.keys() & self._space.narrowed:
                raise ConfigError(
                    f"exclude {_described(condition)} matches no trial",
                    where=f"sweep {self._space.name}",
                    fix="Leave it out, or write values as the axes have them",
                )

    def _resolve(
        self, row: list[tuple[int, Any]]
    ) -> tuple[dict[str, Any], dict[str, AxisValue], Settings]:
        chosen = tuple(
            text(value)
            for (_, value), is_group in zip(row, self._is_group, strict=True)
            if is_group
        )
        source, settings = self._source(chosen)
        values = [item for item, is_group in zip(row, self._is_group, strict=True) if not is_group]
        tree, typed = source.identity(values, lambda: self._auto)
        check_together(tree)
        options, fitted = iter(chosen), iter(typed)
        axes = {
            axis.key: next(options) if is_group else _axis_value(next(fitted))
            for axis, is_group in zip(self._axes, self._is_group, strict=True)
        }
        return tree, axes, settings

    def _source(self, chosen: tuple[str, ...]) -> tuple[Mixture, Settings]:
        """Where trials with these options of the group axes come from, composed at most once.

        With independent groups the first composition and those that differ from it in one option
        are enough: 10 × 10 options need 19 compositions, not 100.
        """
        if chosen not in self._sources:
            if self._first is None:
                first = self._compose(chosen)
                self._first, self._chosen = (first, first.settings()), chosen
            mixture = self._mixed(chosen) or Mixture(self._compose(chosen), {})
            first, settings = self._first
            if mixture.first is not first:
                _same_settings(first.settings_tree, mixture.first.settings_tree, chosen)
                settings = mixture.first.settings()
            self._sources[chosen] = mixture, settings
        return self._sources[chosen]

    def _mixed(self, chosen: tuple[str, ...]) -> Mixture | None:
        assert self._first is not None
        first, usual = self._first[0], self._chosen
        short = any(
            (axis.key, name) in SHORT for axis, name in zip(self._group_axes, chosen, strict=True)
        )
        if short or not first.plain or not self._composer.independent(self._choices(chosen)):
            return None
        owners: dict[str, Composition] = {}
        for number, axis in enumerate(self._group_axes):
            if chosen[number] == usual[number]:
                continue
            owner = self._compose((*usual[:number], chosen[number], *usual[number + 1 :]))
            if not owner.plain or axis.key not in IDENTITY_KEYS:
                return None
            owners[axis.key] = owner
        return Mixture(first, owners)

    def _choices(self, chosen: tuple[str, ...]) -> dict[str, str]:
        choices = dict(self._groups)
        for axis, option in zip(self._group_axes, chosen, strict=True):
            chosen = choice_of(axis.key, option, axis.prefix, axis.where, self._composer)
            choices.update(SHORT.get(chosen, dict([chosen])))
        return choices

    def _compose(self, chosen: tuple[str, ...]) -> Composition:
        if chosen not in self._composed:
            config = self._composer.compose(self._choices(chosen))
            self._composed[chosen] = Composition(config, self._values, self._value_axes)
        return self._composed[chosen]

    def _baseline(self, trials: Any) -> dict[str, str]:
        wanted = self._space.baseline
        keys = [axis.key for axis in self._axes]
        for key in wanted:
            if key not in keys:
                raise ConfigError(
                    f"baseline names {key}, which is not an axis",
                    where=f"sweep {self._space.name}",
                    fix=nearest(str(key), keys),
                )
        if not wanted:
            return {}
        for trial in trials:
            if matches(trial.axes, wanted):
                return {key: text(trial.axes[key]) for key in wanted}
        if any(key in self._space.narrowed for key in keys):
            return {}  # `+sweep=quant quant=nf4` leaves the baseline out on purpose
        raise ConfigError(
            f"baseline {_described(wanted)} matches no trial",
            where=f"sweep {self._space.name}",
            fix=nearest(
                text(next(iter(wanted.values()))),
                {text(trial.axes[next(iter(wanted))]) for trial in trials},
            ),
        )


def _trial(
    tree: dict[str, Any],
    axes: dict[str, AxisValue],
    settings: Settings,
    digest: str | None = None,
) -> Trial:
    task = find_task(tree["task"]["name"])
    return Trial(
        hash=digest or config_hash(tree),
        identity=tree,
        axes=axes,
        resources=resources_of(tree, settings.resources, task),
        timeout_s=settings.timeout_s,
        infeasible=infeasible_reason(task, tree),
    )


def _described(condition: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={text(value)}" for key, value in condition.items())


def _axis_value(value: Any) -> AxisValue:
    return value if value is None or isinstance(value, (str, int, float, bool)) else text(value)


def _same_settings(first: Mapping[str, Any], other: Mapping[str, Any], chosen: Any) -> None:
    for key, value in first.items():
        if key not in PER_TRIAL and other[key] != value:
            raise ConfigError(
                f"{key} differs along an axis ({', '.join(chosen)}), and a sweep has one",
                where=key,
                fix="Run the sweep once for each",
            )
