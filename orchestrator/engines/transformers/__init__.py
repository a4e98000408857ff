"""How tasks get a model: found, checked, fetched, loaded, and proven to be what was asked for."""

from orchestrator.engines.transformers.engaged import dtype_name
from orchestrator.engines.transformers.feasible import (
    check_attention,
    check_compile,
    check_length,
    check_model,
)
from orchestrator.engines.transformers.footprint import footprint
from orchestrator.engines.transformers.load import (
    PRELOAD,
    Prepared,
    load,
    load_unmeasured,
    prepare,
    prove_loaded,
    release_free_memory,
    runs,
    thread_count,
    torch_device,
    use_device,
)

__all__ = [
    "PRELOAD",
    "Prepared",
    "check_attention",
    "check_compile",
    "check_length",
    "check_model",
    "dtype_name",
    "footprint",
    "load",
    "load_unmeasured",
    "prepare",
    "prove_loaded",
    "release_free_memory",
    "runs",
    "thread_count",
    "torch_device",
    "use_device",
]
