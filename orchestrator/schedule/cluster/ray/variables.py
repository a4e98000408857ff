"""Environment variables for Ray, which reads them once and passes them on to what it starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def variables(values: Mapping[str, str], *, over_rays: bool = False) -> Iterator[None]:
    """Set variables meanwhile.

    Parameters
    ----------
    values : mapping of str to str
        By name.
    over_rays : bool
        Over the user's own ``RAY_*`` too, which come first otherwise.
    """
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if over_rays or not (name.startswith("RAY_") and name in os.environ):
            os.environ[name] = value
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old
