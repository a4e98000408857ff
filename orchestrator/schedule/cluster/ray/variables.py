"""Environment variables for Ray, which reads them once and passes them on to what it starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables meanwhile; the user's own ``RAY_*`` come first.

    Parameters
    ----------
    values : mapping of str to str
        By name.
    """
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if not (name.startswith("RAY_") and name in os.environ):
            os.environ[name] = value
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old
