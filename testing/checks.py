"""What a plan checks of a trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.measure.registry import find_task
from orchestrator.plan.identity import check_values


def check_of(task: str) -> Callable[[dict[str, Any]], str | None]:
    """Checks an identity: each value against its field, then by the task's own ``check``."""
    found = find_task(task)

    def check(identity: dict[str, Any]) -> str | None:
        check_values(identity)
        return found.check(identity)

    return check
