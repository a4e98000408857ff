"""What tasks are written with: clocks, sampling, statistics, memory. Pure but for the clocks."""

from orchestrator.errors import Infeasible, InputError, Mismatch, OutOfMemory, TaskError
from orchestrator.measure.clock import Clock, FakeClock, HostClock
from orchestrator.measure.metric import Absent, Engaged, Metric, Phase, Samples, Value
from orchestrator.measure.recorder import Recorder
from orchestrator.measure.task import Identity, Task

__all__ = [
    "Absent",
    "Clock",
    "Engaged",
    "FakeClock",
    "HostClock",
    "Identity",
    "Infeasible",
    "InputError",
    "Metric",
    "Mismatch",
    "OutOfMemory",
    "Phase",
    "Recorder",
    "Samples",
    "Task",
    "TaskError",
    "Value",
]
