"""How tasks get a model: found, checked, fetched, loaded, and proven to be what was asked for."""

from tasks.loading.feasible import (
    check_attention,
    check_compile,
    check_length,
    check_model,
    check_not_negative,
    check_positive,
)
from tasks.loading.footprint import Footprint, footprint
from tasks.loading.model import (
    PRELOAD,
    Prepared,
    load,
    load_unmeasured,
    prepare,
    release_free_memory,
    thread_count,
)

__all__ = [
    "PRELOAD",
    "Footprint",
    "Prepared",
    "check_attention",
    "check_compile",
    "check_length",
    "check_model",
    "check_not_negative",
    "check_positive",
    "footprint",
    "load",
    "load_unmeasured",
    "prepare",
    "release_free_memory",
    "thread_count",
]
