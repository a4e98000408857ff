"""Attempts in an environment that ships, for tests: built for real, in a cache of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.environments.build import built
from orchestrator.environments.lock import locked
from orchestrator.errors import Infeasible, InputError
from orchestrator.isolate.isolation import Isolation
from orchestrator.plan.compose import Composer


def environment(name: str) -> dict[str, Any]:
    """As ``environment=NAME`` has it, by the lock that ships."""
    composed = Composer().compose({"task": "noop", "environment": name})
    found = locked(dict(composed.environment))
    if found is None or "packages" not in found:
        pytest.skip("the environment has no lock for this Python, and none can be resolved here")
    return found


@contextmanager
def isolation_with(name: str, cache: Path) -> Iterator[Isolation]:
    """Attempts that share one cache, with the environment in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_CACHE", str(cache))
        # Where pip finds torch's build for CPUs, uv does, too.
        if "UV_FIND_LINKS" not in os.environ and "PIP_FIND_LINKS" in os.environ:
            patch.setenv("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])
        try:
            built(environment(name))
        except (Infeasible, InputError) as error:
            pytest.skip(f"the environment cannot be had here: {error}")
        with Isolation() as made:
            yield made
