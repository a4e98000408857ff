"""Composes configurations with Hydra's own loader; the only file that knows Hydra's internals.

A composition here leaves out the ``hydra`` node and keeps every parsed file between calls, which
makes it some ten times cheaper than ``hydra.compose``. Files of the group ``task`` are laid over
the dataclass of the task they name, so that a person's own task file needs no ceremony to be typed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import version as hydra_version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import (
    CachingConfigRepository,
    ConfigRepository,
    IConfigRepository,
)
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, open_dict

import orchestrator
from orchestrator.errors import ConfigError
from orchestrator.measure.registry import find_task, task_names
from orchestrator.plan.messages import nearest, translated
from orchestrator.plan.schema import RootConfig, SweepConfig

SCHEMA_GROUP = "schema"  # hidden from people: schema/root, schema/task/NAME
SCHEMA_ROOT = "root"
EMPTY_ROOT = "empty_root"
ROOT_CONFIG = "config"


@dataclass
class SweepRoot:
    """A root with nothing but a sweep, for reading one apart from what it sweeps over."""

    sweep: SweepConfig = field(default_factory=SweepConfig)


def conf_directory() -> Path:
    """The built-in configuration: packaged as ``orchestrator/conf``, or beside it in a checkout.

    Raises
    ------
    ConfigError
        If neither place has it.
    """
    package = Path(orchestrator.__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / f"{ROOT_CONFIG}.yaml").is_file():
            return candidate
    raise ConfigError(
        "the built-in configuration is missing",
        where=str(package / "conf"),
        fix="Install the package again",
    )


def search_path(config_dirs: Sequence[Path | str]) -> ConfigSearchPath:
    """Hydra's search path: built-in configuration first, then each of ``config_dirs``.

    Raises
    ------
    ConfigError
        A directory does not exist, or has a file that a built-in one of the same name would hide.
    """
    path = ConfigSearchPathImpl()
    built_in = conf_directory()
    path.append("hydra", "pkg://hydra.conf")
    path.append("main", f"file://{built_in}")
    for item in config_dirs:
        text = str(item)
        if text.startswith("pkg://"):
            path.append("command-line", text)
            continue
        directory = Path(text.removeprefix("file://")).expanduser().absolute()
        if not directory.is_dir():
            raise ConfigError("no such directory", where=f"--config-dir {item}")
        if not directory.samefile(built_in):
            _refuse_hidden(directory, built_in)
        path.append("command-line", f"file://{directory}")
    path.append("schema", "structured://")
    return path


def _refuse_hidden(directory: Path, built_in: Path) -> None:
    for file in sorted(built_in.glob("*/*.yaml")):
        name = file.relative_to(built_in)
        if (directory / name).exists():
            raise ConfigError(
                "a built-in file of the same name would hide this one",
                where=str(directory / name),
                fix=f"Rename it, and choose it by its new name instead of {name.stem}",
            )


def registered_schema(task: str) -> type:
    """Dataclass of ``task``, registered in Hydra's ConfigStore under ``schema/task``.

    Raises
    ------
    ConfigError
        If no such task is installed, or its module cannot be imported.
    """
    try:
        config = find_task(task).config
    except ImportError as error:
        raise ConfigError(f"cannot be imported: {error}", where=f"task={task}") from error
    ConfigStore.instance().store(
        group=f"{SCHEMA_GROUP}/task", name=task, node=config, provider="orchestrator"
    )
    return config


class TypedRepository(ConfigRepository):
    """Config files as Hydra finds them, with task files typed and tasks without a file added."""

    def __deepcopy__(self, memo: Any) -> TypedRepository:
        # Hydra copies a repository to give it other sources. Sharing the old ones is enough, and
        # a copy of the ConfigStore would miss tasks that are registered later.
        return copy.copy(self)

    def load_config(self, config_path: str) -> ConfigResult | None:
        name = _task_option(config_path)
        if name is None:
            return super().load_config(config_path)
        if not super().config_exists(config_path):
            if name not in task_names():
                return None
            registered_schema(name)
            result = super().load_config(f"{SCHEMA_GROUP}/task/{name}")
            assert result is not None
            # Its package would otherwise follow the schema's place, not the group's.
            result.header = {"package": None}
            result.is_schema_source = True
            return result
        result = super().load_config(config_path)
        assert result is not None
        inherits = any(not default.is_self() for default in result.defaults_list or [])
        config = result.config
        if isinstance(config, DictConfig) and not inherits:
            asked = OmegaConf.select(config, "name") or name
            if asked not in task_names():
                raise ConfigError(
                    f"names no task that exists: {asked}",
                    where=f"task/{name}.yaml",
                    fix=f"Give it `name:`. {nearest(str(asked), task_names())}",
                )
            with translated(f"task/{name}.yaml"):
                result.config = OmegaConf.merge(
                    OmegaConf.structured(registered_schema(asked)), config
                )
        return result

    def config_exists(self, config_path: str) -> bool:
        name = _task_option(config_path)
        return super().config_exists(config_path) or (name is not None and name in task_names())

    def get_group_options(
        self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG
    ) -> list[str]:
        options = super().get_group_options(group_name, results_filter)
        if group_name.strip("/") == "task" and results_filter is not ObjectType.GROUP:
            options = sorted({*options, *task_names()})
        if group_name.strip("/") == "":
            options = [option for option in options if option != SCHEMA_GROUP]
        return options


def _task_option(config_path: str) -> str | None:
    group, _, option = config_path.removesuffix(".yaml").rpartition("/")
    return option if group == "task" else None


class TypedLoader(ConfigLoaderImpl):
    """Hydra's loader over a :class:`TypedRepository`."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        hydra_version.setbase("1.3")
        Plugins.instance()  # registers the file:// and structured:// sources
        store = ConfigStore.instance()
        store.store(SCHEMA_ROOT, RootConfig, SCHEMA_GROUP, "_global_", "orchestrator")
        store.store(EMPTY_ROOT, {}, provider="orchestrator")
        super().__init__(config_search_path)
        self.repository = TypedRepository(config_search_path)


class _WithoutHydra(CachingConfigRepository):
    """Keeps every file once read, root files without what they say to Hydra itself."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        known = f"config_path={config_path}" in self.cache
        result = super().load_config(config_path)
        if known or result is None or "/" in config_path:
            return result
        if isinstance(result.config, DictConfig) and "hydra" in result.config:
            with open_dict(result.config):
                del result.config["hydra"]  # there is no such node to merge it into
        result.defaults_list = [d for d in result.defaults_list or [] if not _is_hydras(d)]
        return result


class _FreshCopies(IConfigRepository):
    """A caching repository that never hands its cached nodes out: merging changes them in place."""

    def __init__(self, cached: CachingConfigRepository) -> None:
        self._cached = cached

    def load_config(self, config_path: str) -> ConfigResult | None:
        result = self._cached.load_config(config_path)
        if result is not None:
            result = copy.copy(result)
            result.config = copy.deepcopy(result.config)
        return result

    def get_schema_source(self) -> Any:
        return self._cached.get_schema_source()

    def group_exists(self, config_path: str) -> bool:
        return self._cached.group_exists(config_path)

    def config_exists(self, config_path: str) -> bool:
        return self._cached.config_exists(config_path)

    def get_group_options(
        self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG
    ) -> list[str]:
        return self._cached.get_group_options(group_name, results_filter)

    def get_sources(self) -> Any:
        return self._cached.get_sources()

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        self._cached.initialize_sources(config_search_path)


class Composer:
    """Composes configurations from choices of config groups, cheaply and again and again.

    Parameters
    ----------
    config_dirs : sequence of path
        A person's own directories of groups.
    config_name : str
        Root file, without ``.yaml``.
    """

    def __init__(
        self, config_dirs: Sequence[Path | str] = (), config_name: str = ROOT_CONFIG
    ) -> None:
        self._loader = TypedLoader(search_path(config_dirs))
        self._cached = _WithoutHydra(self._loader.repository)
        self._copies = _FreshCopies(self._cached)
        self._config_name = config_name
        self._options: dict[str, list[str]] = {}
        if not self._cached.config_exists(config_name):
            roots = self._cached.get_group_options("")
            raise ConfigError(
                f"no such root file: {config_name}",
                where="--config-name",
                fix=nearest(config_name, roots),
            )
        with translated(f"{config_name}.yaml"):
            root = self._cached.load_config(config_name)
        assert root is not None
        with translated(f"{config_name}.yaml"):
            found = create_defaults_list(self._cached, config_name, [], False, skip_missing=True)
        #: Groups that the root file names, and the option it names.
        self.default_groups = dict(found.overrides.known_choices)
        self.root_keys = [str(key) for key in OmegaConf.structured(RootConfig)]
        self._root_is_plain = all(
            (isinstance(default, GroupDefault) and "${" not in str(default.value))
            or default.is_self()
            or _is_schema(default)
            for default in root.defaults_list or []
        )

    def is_group(self, key: str) -> bool:
        """Whether ``key`` names a config group (``quant``, ``own/group@package``)."""
        group = key.split("@")[0]
        return "." not in group and group in self._known_groups()

    def groups(self) -> list[str]:
        """Every config group a person can choose from, nested ones with a slash."""
        return [g for g in self._known_groups() if g.split("/")[0] != "hydra"]

    def _known_groups(self) -> list[str]:
        if "" not in self._options:
            found: list[str] = []
            pending = self._cached.get_group_options("", ObjectType.GROUP)
            while pending:
                group = pending.pop()
                found.append(group)
                inner = self._cached.get_group_options(group, ObjectType.GROUP)
                pending.extend(f"{group}/{name}" for name in inner)
            self._options[""] = sorted(found)
        return self._options[""]

    def options(self, group: str) -> list[str]:
        """Names that can be chosen in ``group``."""
        group = group.split("@")[0]
        if group not in self._options:
            self._options[group] = self._cached.get_group_options(group)
        return self._options[group]

    def has_option(self, group: str, option: str) -> bool:
        """Whether ``group=option`` can be chosen."""
        return self._cached.config_exists(f"{group.split('@')[0]}/{option}")

    def independent(self, choices: Mapping[str, str]) -> bool:
        """Whether each of these choices decides its own node of the configuration and no other.

        Then the configuration for any mixture of options is put together from configurations that
        differ in one of them.
        """
        every = {**self.default_groups, **choices}
        return self._root_is_plain and all(
            option is not None and self._is_local(group, option) for group, option in every.items()
        )

    def _is_local(self, group: str, option: str) -> bool:
        if group not in self.root_keys or group not in self.default_groups:
            return False
        result = self._cached.load_config(f"{group}/{option}")
        if result is None or result.header["package"] not in (None, group):
            return False
        return all(
            default.is_self()
            or (
                isinstance(default, ConfigDefault)
                and default.package is None
                and not any(mark in str(default.path) for mark in ("/", "${"))
                and self._is_local(group, str(default.path))
            )
            for default in result.defaults_list or []
        )

    def compose(self, choices: Mapping[str, str]) -> DictConfig:
        """The configuration for these choices of groups, typed and closed to unknown keys.

        Parameters
        ----------
        choices : mapping of group to option
            ``+group`` appends a group that the root file does not name.

        Raises
        ------
        ConfigError
            A file does not fit its schema, or names something that does not exist.
        """
        shown = " ".join(f"{key}={option}" for key, option in choices.items())
        with translated(shown or f"{self._config_name}.yaml"):
            config = self._compose(self._config_name, choices)
        OmegaConf.set_struct(config, True)
        check_task(config)
        return config

    def compose_sweep(self, name: str | None) -> DictConfig:
        """Only the node ``sweep``, from its file and those it inherits; defaults without a name.

        Raises
        ------
        ConfigError
            The file does not fit ``SweepConfig``.
        """
        config = OmegaConf.structured(SweepRoot)
        if name is not None:
            with translated(f"sweep/{name}.yaml"):
                config.merge_with(self._compose(EMPTY_ROOT, {"+sweep": name}))
        OmegaConf.set_struct(config, True)
        assert isinstance(config, DictConfig)
        return config

    def _compose(self, root: str, choices: Mapping[str, str]) -> DictConfig:
        found = create_defaults_list(
            repo=self._cached,
            config_name=root,
            overrides_list=[_group_override(key, option) for key, option in choices.items()],
            prepend_hydra=False,
            skip_missing=False,
        )
        return self._loader._compose_config_from_defaults_list(found.defaults, self._copies)


def _is_hydras(default: InputDefault) -> bool:
    return isinstance(default, GroupDefault) and str(default.group).startswith("hydra/")


def _is_schema(default: InputDefault) -> bool:
    return isinstance(default, ConfigDefault) and default.path == f"{SCHEMA_GROUP}/{SCHEMA_ROOT}"


def _group_override(key: str, option: str) -> Override:
    appended = key.startswith("+")
    group, _, package = key.lstrip("+").partition("@")
    return Override(
        type=OverrideType.ADD if appended else OverrideType.CHANGE,
        key_or_group=group,
        value_type=ValueType.ELEMENT,
        _value=option,
        package=package or None,
        input_line=f"{key}={option}",
    )


def check_task(config: DictConfig) -> None:
    kind = OmegaConf.get_type(config, "task")
    name = OmegaConf.select(config, "task.name")
    if not isinstance(name, str):
        raise ConfigError("no task is chosen", where="task", fix="Write task=NAME")
    if kind is not registered_schema(name):
        raise ConfigError(f"is not a configuration of task {name}", where="task")
