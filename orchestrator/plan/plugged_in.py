"""The config groups whose options bring a dataclass of their own: installed tasks and engines."""

from __future__ import annotations

from typing import Any

from orchestrator.engines.registry import ENGINES
from orchestrator.measure.registry import TASKS, Registry

PLUGGED_IN: dict[str, Registry[Any]] = {"task": TASKS, "engine": ENGINES}
