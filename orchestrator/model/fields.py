"""Reads numbers out of a configuration, and says in one line which one is missing or wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ConfigError

WHERE = "model.architecture"


class ImpossibleSize(ConfigError):
    """A size that is no positive integer, or does not divide another: no model can have it."""


class Fields:
    """A configuration of one model type; every look-up names the field it fails on.

    Parameters
    ----------
    config : mapping
        Plain values.
    model_type : str
        For the messages.
    """

    def __init__(self, config: Mapping[str, Any], model_type: str) -> None:
        self._config = self.config = config
        self.model_type = model_type

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._config.get(name) is not None

    def mentions(self, name: str) -> bool:
        """Whether the field is there, null or not."""
        return name in self._config

    def named(self, *names: str) -> str:
        """The first of ``names`` that is given: what the person wrote."""
        return next((name for name in names if self.has(name)), names[0])

    def size(self, *names: str, default: int | None = None) -> int:
        """A positive integer under the first of ``names`` that is given.

        Raises
        ------
        ConfigError
            If none is given and there is no default, or it is no positive integer.
        """
        for name in names:
            if self.has(name):
                return self._positive(name)
        if default is not None:
            return default
        raise ConfigError(
            f"the configuration of {self.model_type} lacks it",
            where=f"{WHERE}.{names[0]}",
            fix=f"Add {names[0]}, a positive integer",
        )

    def optional_size(self, *names: str) -> int | None:
        """As :meth:`size`; None where no field is given."""
        return next((self._positive(name) for name in names if self.has(name)), None)

    def flag(self, name: str, default: bool) -> bool:
        """A truth value; ``default`` where the field is absent or null.

        Raises
        ------
        ConfigError
            If it is neither true nor false.
        """
        value = self._config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, f"{value!r} is neither true nor false")
        return value

    def fraction(self, *names: str, default: float) -> float:
        """A share of a whole, of the configuration or of its rotary parameters."""
        for source in (self._config, self._config.get("rope_parameters") or {}):
            for name in names:
                value = source.get(name) if isinstance(source, Mapping) else None
                if value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise self.wrong(name, f"{value!r} is not a number")
                if not 0 < value <= 1:
                    raise self.wrong(name, f"{value!r} is not a share between 0 and 1")
                return float(value)
        return default

    def drops(self, name: str, default: float = 0.0) -> bool:
        """Whether a dropout rate is more than nothing."""
        value = self._config.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, f"{value!r} is not a number")
        return value > 0

    def count(self, name: str, default: int) -> int:
        """An integer of at least 0."""
        value = self._config.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(name, f"{value!r} is not an integer of at least 0")
        return value

    def values(self, name: str) -> list[Any] | None:
        """A list; None where the field is absent or null."""
        value = self._config.get(name)
        if value is None:
            return None
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise self.wrong(name, f"{value!r} is not a list")
        return list(value)

    def divides(self, name: str, part: int, whole_name: str, whole: int) -> int:
        """``whole`` over ``part``.

        Raises
        ------
        ConfigError
            If it does not come out even, naming both.
        """
        if whole % part:
            raise self._impossible(name, f"{part} does not divide {whole_name}={whole}")
        return whole // part

    def wrong(self, name: str, what: str) -> ConfigError:
        """An error about the field ``name``."""
        return ConfigError(what, where=f"{WHERE}.{name}")

    def _positive(self, name: str) -> int:
        value = self._config[name]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._impossible(name, f"{value!r} is not an integer")
        if value <= 0:
            raise self._impossible(name, f"{value} is not positive")
        return value

    def _impossible(self, name: str, what: str) -> ImpossibleSize:
        return ImpossibleSize(what, where=f"{WHERE}.{name}")
