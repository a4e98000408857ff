"""A world for each test, to be broken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testing.world import World


@pytest.fixture
def world() -> Iterator[World]:
    """A place of its own; what is left in it is killed at the end."""
    with World() as made:
        yield made
