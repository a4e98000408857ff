"""A trial's identity by hand, for whoever has no Hydra, and an attempt of it, without Ray."""

from __future__ import annotations

import dataclasses
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import (
    AttemptReport,
    Outcome,
    PlannedAttempt,
    Resources,
    Slot,
    Trial,
    Verdict,
)
from orchestrator.engines.registry import ENGINES
from orchestrator.measure import Metric
from orchestrator.measure.registry import find_task
from orchestrator.plan.schema import GGUF, SCHEMA_VERSION, LoadConfig

if TYPE_CHECKING:
    from orchestrator.isolate.isolation import Isolation

TINY = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
QUANTS = {
    "fp32": ("none", "float32", False),
    "bf16": ("none", "bfloat16", False),
    "fp16": ("none", "float16", False),
    "int8": ("int8", "bfloat16", False),
    "nf4": ("nf4", "bfloat16", True),
    "fp4": ("fp4", "bfloat16", True),
    "int8wo": ("int8wo", "bfloat16", False),
    "int4wo": ("int4wo", "float32", False),
    **{name: (name, None, False) for name in (*GGUF, "source")},
}


_LOADS: dict[str, dict[str, Any]] = {
    "closed": {},
    "open": {"concurrency": None, "rate": 1.0, "arrivals": "poisson"},
    "trace": {"concurrency": None, "speed": 1.0},
}


def make_load(kind: str = "closed", **options: Any) -> dict[str, Any]:
    """What ``load=<kind>`` and these options are."""
    return dataclasses.asdict(LoadConfig(kind=kind, **{**_LOADS[kind], **options}))


def make_identity(
    quant: str = "fp32",
    *,
    task: str = "inference",
    model: dict[str, Any] | None = None,
    device: str = "cpu",
    engine: str = "transformers",
    load: str = "closed",
    **options: Any,
) -> dict[str, Any]:
    """A trial's identity; ``model`` is :data:`TINY` by default.

    ``options`` are the engine's or the load's where they have the name of one, else the task's.
    """
    found = find_task(task)
    engine_config = ENGINES.find(engine).config
    names = {each.name for each in dataclasses.fields(engine_config)} if found.on_engine else set()
    engines = {name: options.pop(name) for name in names & options.keys()}
    names = {each.name for each in dataclasses.fields(LoadConfig)} if found.under_load else set()
    loads = {name: options.pop(name) for name in names & options.keys()}
    scheme, dtype, double_quant = QUANTS[quant]
    return {
        "schema": SCHEMA_VERSION,
        "task": dataclasses.asdict(found.config(**options)),
        "engine": dataclasses.asdict(engine_config(**engines)) if found.on_engine else None,
        "model": {
            "source": "random",
            "id": None,
            "revision": None,
            "path": None,
            "architecture": None,
            "trust_remote_code": False,
            **(model or {"architecture": dict(TINY)}),
        },
        "quant": {
            "scheme": scheme,
            "dtype": dtype,
            "double_quant": double_quant,
            "group_size": 32 if quant == "int4wo" else None,
        },
        "protocol": {
            "warmup": 1,
            "min_repetitions": 3,
            "max_repetitions": 3,
            "max_time_s": 60.0,
            "ci_relative_half_width": 0.05,
            "confidence": 0.95,
            "resamples": 1000,
        },
        "device": {"kind": device, "threads": 1},
        "seed": 0,
        "environment": None,
        "load": make_load(load, **loads) if found.under_load else None,
    }


def ok_report(*metrics: Metric, **changes: Any) -> AttemptReport:
    """The report of an attempt that went well and measured ``metrics``."""
    given: dict[str, Any] = {
        "attempt_id": "1",
        "config_hash": "0" * 64,
        "outcome": Outcome.OK,
        "verdict": Verdict("valid"),
        "metrics": {metric.name: metric for metric in metrics},
    }
    return AttemptReport(**{**given, **changes})


def run_attempt(
    isolation: Isolation,
    identity: Mapping[str, Any],
    *,
    config_hash: str = "0" * 64,
    cores: Sequence[int] | None = None,
    gpu_uuids: tuple[str, ...] = (),
    watch: Any = None,
    timeout_s: float = 1800.0,
    memory_limit_bytes: int | None = None,
    **asked: Any,
) -> AttemptReport:
    """The report of one attempt, however it ends; ``asked`` goes into its ``PlannedAttempt``.

    Parameters
    ----------
    cores : sequence of int, optional
        Those it may use; by default all.
    """
    cpus = tuple(sorted(os.sched_getaffinity(0)) if cores is None else cores)
    slot = Slot("local", socket.gethostname(), cpus, gpu_uuids, ",".join(gpu_uuids))
    trial = Trial(
        config_hash,
        dict(identity),
        resources=Resources(memory_bytes=memory_limit_bytes),
        timeout_s=timeout_s,
    )
    planned = PlannedAttempt(trial, attempt_id=uuid.uuid4().hex, **asked)
    *_, report = isolation.run(planned, slot, watch)
    assert isinstance(report, AttemptReport)
    return report
