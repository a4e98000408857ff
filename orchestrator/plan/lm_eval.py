"""The environment of lm-evaluation-harness, which asks and counts for ``task.evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from orchestrator.environments.lock import locked

ENVIRONMENT = "lm_eval"
PACKAGE = "lm-eval"


@cache
def harness_environment() -> Mapping[str, Any]:
    """Its locked packages, as :func:`orchestrator.environments.lock.locked` gives them."""
    from orchestrator.plan.compose import Composer  # a supervisor rarely needs it

    composed = Composer().compose({"task": "noop", "environment": ENVIRONMENT})
    found = locked(dict(composed.environment))
    assert found is not None, "the file that ships asks for packages"
    return found


def harness_of(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """The environment of the harness that evaluates a trial; empty where none does."""
    evaluated = str(identity["task"].get("evaluate")).startswith("lm_eval:")
    return harness_environment() if evaluated else {}


def harness_software(identity: Mapping[str, Any]) -> dict[str, str]:
    """The version of that harness; nothing where there is none, or none can be had."""
    packages = harness_of(identity).get("packages", {})
    return {name: version for name, version in packages.items() if name == PACKAGE}
