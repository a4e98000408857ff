"""Fields of an option dataclass that say which values they take; a plan checks them.

Of the standard library alone: a measured process imports the dataclasses too.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any


def choice(*names: str, default: str | None = None) -> Any:
    """A text field that takes one of ``names``; the first is the default unless one is given."""
    return field(default=default or names[0], metadata={"choices": names})


def bounded(default: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """A number field with inclusive bounds; None passes where the type allows it."""
    return field(default=default, metadata={"low": low, "high": high})
