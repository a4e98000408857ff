"""The config groups whose options bring a dataclass of their own: tasks, engines, loads."""

from __future__ import annotations

from typing import Any

from orchestrator.engines.registry import ENGINES
from orchestrator.measure.load import LOADS
from orchestrator.measure.registry import TASKS, Registry

PLUGGED_IN: dict[str, Registry[Any]] = {"task": TASKS, "engine": ENGINES, "load": LOADS}
