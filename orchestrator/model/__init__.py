"""The analytic model: what a model weighs, computes and takes, from its configuration. No torch.

::

    configuration -> Architecture -> parameters, weights_bytes, kv_bytes
                          `-> operations (FLOPs, bytes) x ceilings -> time, what fits

Each formula is derived in ``docs/arithmetic.md``.
"""

from orchestrator.model.architecture import Architecture
from orchestrator.model.datasheet import (
    Datasheet,
    datasheet_of,
    known_hardware,
    load_datasheet,
)
from orchestrator.model.expectation import (
    Expectation,
    Steps,
    Transfer,
    Work,
)
from orchestrator.model.families import read_architecture
from orchestrator.model.fit import (
    Context,
    Memory,
    compute_bound_batch,
    longest_context,
    memory,
)
from orchestrator.model.kv_cache import CacheFormat, kv_bytes
from orchestrator.model.measured_device import Measured
from orchestrator.model.operations import (
    EAGER,
    IDEAL,
    Execution,
    Operation,
    decode,
    flops,
    moved_bytes,
    prefill,
)
from orchestrator.model.parameters import active_parameter_count, parameter_count
from orchestrator.model.roofline import Ceilings, Estimate, estimate
from orchestrator.model.training_arithmetic import (
    StepFlops,
    TrainingMemory,
    step_flops,
    step_operations,
    training_memory,
)
from orchestrator.model.weights import WeightFormat, weights_bytes

__all__ = [
    "EAGER",
    "IDEAL",
    "Architecture",
    "CacheFormat",
    "Ceilings",
    "Context",
    "Datasheet",
    "Estimate",
    "Execution",
    "Expectation",
    "Measured",
    "Memory",
    "Operation",
    "StepFlops",
    "Steps",
    "TrainingMemory",
    "Transfer",
    "WeightFormat",
    "Work",
    "active_parameter_count",
    "compute_bound_batch",
    "datasheet_of",
    "decode",
    "estimate",
    "flops",
    "known_hardware",
    "kv_bytes",
    "load_datasheet",
    "longest_context",
    "memory",
    "moved_bytes",
    "parameter_count",
    "prefill",
    "read_architecture",
    "step_flops",
    "step_operations",
    "training_memory",
    "weights_bytes",
]
