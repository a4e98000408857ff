"""The analytic model: what a model weighs, computes and takes, from its configuration. No torch.

::

    configuration -> Architecture -> parameters, weights_bytes, kv_bytes
                          `-> operations (FLOPs, bytes) x ceilings -> time, what fits

Each formula is derived in ``docs/arithmetic.md``.
"""

from orchestrator.measure.arithmetic.architecture import Architecture
from orchestrator.measure.arithmetic.cache import CacheFormat, kv_bytes
from orchestrator.measure.arithmetic.expectation import (
    Expectation,
    Limits,
    Steps,
    Transfer,
    Work,
    predicted_metrics,
)
from orchestrator.measure.arithmetic.families import known_model_types, read_architecture
from orchestrator.measure.arithmetic.fit import (
    Context,
    Memory,
    compute_bound_batch,
    longest_context,
    memory,
)
from orchestrator.measure.arithmetic.hardware import (
    Datasheet,
    datasheet_of,
    known_hardware,
    load_datasheet,
)
from orchestrator.measure.arithmetic.measured import Measured
from orchestrator.measure.arithmetic.operations import (
    EAGER,
    IDEAL,
    Execution,
    Operation,
    decode,
    flops,
    moved_bytes,
    prefill,
)
from orchestrator.measure.arithmetic.parameters import active_parameter_count, parameter_count
from orchestrator.measure.arithmetic.roofline import Ceilings, Estimate, estimate
from orchestrator.measure.arithmetic.training import (
    StepFlops,
    TrainingMemory,
    step_flops,
    step_operations,
    training_memory,
    utilisation,
)
from orchestrator.measure.arithmetic.weights import WeightFormat, weights_bytes

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
    "Limits",
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
    "known_model_types",
    "kv_bytes",
    "load_datasheet",
    "longest_context",
    "memory",
    "moved_bytes",
    "parameter_count",
    "predicted_metrics",
    "prefill",
    "read_architecture",
    "step_flops",
    "step_operations",
    "training_memory",
    "utilisation",
    "weights_bytes",
]
