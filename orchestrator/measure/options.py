"""Fields of an option dataclass that say which values they take; a plan checks them.

Of the standard library alone: a measured process imports the dataclasses too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any, TypeVar

T = TypeVar("T")


def choice(*names: str, default: str | None = None, only: Mapping[str, Any] | None = None) -> Any:
    """A text field that takes one of ``names``; the first is the default unless one is given.

    ``only`` as in :func:`bounded`.
    """
    return field(default=default or names[0], metadata={"choices": names, "only": only})


def bounded(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    only: Mapping[str, Any] | None = None,
    added: bool = False,
) -> Any:
    """A number field with inclusive bounds; None passes where the type allows it.

    Parameters
    ----------
    only : mapping of str to value, optional
        Other options of the dataclass and what they must be for this one to have an effect. A
        line says so where it is asked for and has none.
    added : bool
        It came after trials were recorded without it, and its default is what they did: at its
        default it is no part of an identity, so that their hashes stay.
    """
    return field(default=default, metadata={"low": low, "high": high, "only": only, "added": added})


def options_of(config: type[T], identity: Mapping[str, Any]) -> T:
    """``identity["task"]`` as the dataclass ``config``; what it does not know is left out."""
    known = {one.name for one in fields(config)}  # type: ignore[arg-type]
    return config(**{k: v for k, v in identity["task"].items() if k in known})
