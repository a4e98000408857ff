"""What tasks are written with: clocks, sampling, statistics, memory. Pure but for the clocks."""

from orchestrator.errors import (
    ConfigError,
    Infeasible,
    InputError,
    Mismatch,
    OutOfMemory,
    TaskError,
)
from orchestrator.measure.clock import (
    Clock,
    CudaClock,
    HostClock,
    Mark,
    clock_for,
    timed,
)
from orchestrator.measure.memory import CudaMemory, HostMemory, MemoryTracker, tracker
from orchestrator.measure.metric import (
    Absent,
    Engaged,
    Metric,
    MetricSpec,
    Phase,
    Samples,
    Value,
)
from orchestrator.measure.recorder import Recorder
from orchestrator.measure.sampling import Repetition, first_call, repeat
from orchestrator.measure.task import Evaluation, Identity, Task

__all__ = [
    "Absent",
    "Clock",
    "ConfigError",
    "CudaClock",
    "CudaMemory",
    "Engaged",
    "Evaluation",
    "HostClock",
    "HostMemory",
    "Identity",
    "Infeasible",
    "InputError",
    "Mark",
    "MemoryTracker",
    "Metric",
    "MetricSpec",
    "Mismatch",
    "OutOfMemory",
    "Phase",
    "Recorder",
    "Repetition",
    "Samples",
    "Task",
    "TaskError",
    "Value",
    "clock_for",
    "first_call",
    "repeat",
    "timed",
    "tracker",
]
