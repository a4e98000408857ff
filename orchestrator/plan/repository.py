"""Where configuration files come from, read as Hydra reads them but typed and kept.

With ``compose`` the only file that knows Hydra's internals. Files of the group ``task`` are laid
over the dataclass of the task they name, so that a person's own task file needs no ceremony to be
typed, and a task without a file can be chosen too.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import version as hydra_version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import GroupDefault, InputDefault
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, open_dict

from orchestrator.errors import ConfigError, nearest
from orchestrator.plan.messages import translated
from orchestrator.plan.places import conf_directory
from orchestrator.plan.plugged_in import PLUGGED_IN
from orchestrator.plan.schema import RootConfig
from orchestrator.plan.text_fields import keep_text

SCHEMA_GROUP = "schema"  # hidden from people: schema/root, schema/task/NAME
SCHEMA_ROOT = "root"
EMPTY_ROOT = "empty_root"


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
        if not text:  # a variable that is not set, and no wish for the current directory
            raise ConfigError("is empty", where="--config-dir", fix="Write a directory, or .")
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


def registered_schema(group: str, name: str) -> type:
    """Dataclass of ``group=name``, registered in Hydra's ConfigStore under ``schema/group``.

    Raises
    ------
    ConfigError
        If none of this name is installed, or its module cannot be imported.
    """
    try:
        config: type = PLUGGED_IN[group].find(name).config
    except ImportError as error:
        raise ConfigError(f"cannot be imported: {error}", where=f"{group}={name}") from error
    ConfigStore.instance().store(
        group=f"{SCHEMA_GROUP}/{group}", name=name, node=config, provider="orchestrator"
    )
    return config


class TypedRepository(ConfigRepository):
    """Config files as Hydra finds them, those of tasks and engines typed, missing ones added."""

    def __deepcopy__(self, memo: Any) -> TypedRepository:
        # Hydra copies a repository to give it other sources. Sharing the old ones is enough, and
        # a copy of the ConfigStore would miss tasks that are registered later.
        return copy.copy(self)

    def load_config(self, config_path: str) -> ConfigResult | None:
        option = _plugged_in(config_path)
        if option is None:
            return self._as_written(config_path)
        group, name = option
        names = PLUGGED_IN[group].names()
        if not super().config_exists(config_path):
            if name not in names:
                return None
            registered_schema(group, name)
            result = super().load_config(f"{SCHEMA_GROUP}/{group}/{name}")
            assert result is not None
            # Its package would otherwise follow the schema's place, not the group's.
            result.header = {"package": None}
            result.is_schema_source = True
            return result
        result = self._as_written(config_path)
        assert result is not None
        inherits = any(not default.is_self() for default in result.defaults_list or [])
        config = result.config
        if isinstance(config, DictConfig) and not inherits:
            asked = OmegaConf.select(config, "name") or name
            if asked not in names:
                raise ConfigError(
                    f"names no {group} that exists: {asked}",
                    where=f"{group}/{name}.yaml",
                    fix=f"Give it `name:`. {nearest(str(asked), names)}",
                )
            with translated(f"{group}/{name}.yaml"):
                result.config = OmegaConf.merge(
                    OmegaConf.structured(registered_schema(group, asked)), config
                )
        return result

    def _as_written(self, config_path: str) -> ConfigResult | None:
        """A file as Hydra reads it, its text fields as they stand there."""
        result = super().load_config(config_path)
        if result is None or not isinstance(result.config, DictConfig):
            return result
        place = (result.path or "").removeprefix("file://")
        name = config_path if config_path.endswith(".yaml") else f"{config_path}.yaml"
        file = Path(place) / name
        package = result.header.get("package")
        if package is None:
            package = config_path.rpartition("/")[0].replace("/", ".")
        if result.path != place and file.is_file():
            keep_text(result.config, "" if package == "_global_" else package, file)
            if package == "environment" and result.config.get("requirements"):
                with open_dict(result.config):
                    result.config["file"] = str(file)
        return result

    def config_exists(self, config_path: str) -> bool:
        option = _plugged_in(config_path)
        return super().config_exists(config_path) or (
            option is not None and option[1] in PLUGGED_IN[option[0]].names()
        )

    def get_group_options(
        self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG
    ) -> list[str]:
        options = super().get_group_options(group_name, results_filter)
        group = group_name.strip("/")
        if group in PLUGGED_IN and results_filter is not ObjectType.GROUP:
            options = sorted({*options, *PLUGGED_IN[group].names()})
        if group == "":
            options = [option for option in options if option != SCHEMA_GROUP]
        return options


def _plugged_in(config_path: str) -> tuple[str, str] | None:
    group, _, option = config_path.removesuffix(".yaml").rpartition("/")
    return (group, option) if group in PLUGGED_IN else None


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


class FilesOnce(CachingConfigRepository):
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


@functools.cache
def built_in() -> tuple[TypedLoader, FilesOnce]:
    """What ships with this program: no file of it changes while a process runs."""
    loader = TypedLoader(search_path(()))
    return loader, FilesOnce(loader.repository)


class FreshCopies(FilesOnce):
    """Never hands out what it keeps: merging changes a node in place.

    Parameters
    ----------
    shared : FilesOnce
        What either has read, both keep.
    """

    def __init__(self, shared: FilesOnce) -> None:
        super().__init__(shared.delegate)
        self.cache = shared.cache

    def load_config(self, config_path: str) -> ConfigResult | None:
        result = super().load_config(config_path)
        if result is not None:
            result = copy.copy(result)
            result.config = copy.deepcopy(result.config)
        return result


def _is_hydras(default: InputDefault) -> bool:
    return isinstance(default, GroupDefault) and str(default.group).startswith("hydra/")
