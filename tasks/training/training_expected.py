"""What arithmetic says of a training step before it runs: FLOPs, memory, and what cannot fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.measure import ConfigError, Infeasible
from orchestrator.model import (
    EAGER,
    IDEAL,
    Architecture,
    Execution,
    Operation,
    StepFlops,
    TrainingMemory,
    WeightFormat,
    step_flops,
    step_operations,
    training_memory,
    weights_bytes,
)
from orchestrator.model.architecture import ELEMENTWISE
from orchestrator.model.datasheet import datasheet_of
from orchestrator.model.expectation import Expectation, Steps, Work
from orchestrator.model.operations import FORWARD

if TYPE_CHECKING:
    from orchestrator.tasks.training.training import TrainingConfig

_GIB = 1 << 30
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Expected:
    """FLOPs and memory of the step that is configured.

    Parameters
    ----------
    config : mapping
        The model's Hugging Face configuration.
    dtype : str
        Of the parameters.

    Attributes
    ----------
    flops : StepFlops or None
    memory : TrainingMemory or None
    absent_reason : str or None
        Why the arithmetic knows no such model.
    """

    def __init__(self, config: Mapping[str, Any], options: TrainingConfig, dtype: str) -> None:
        self.flops: StepFlops | None = None
        self.memory: TrainingMemory | None = None
        self.absent_reason: str | None = None
        try:
            architecture = Architecture.from_config(config)
        except ConfigError as error:
            self.absent_reason = str(error)
            return
        fused = options.attention != "eager"
        self.flops = step_flops(
            architecture,
            options.batch_size,
            options.context_tokens,
            checkpointing=options.checkpointing,
            fused_attention=fused,
        )
        self.memory = training_memory(
            architecture,
            options.batch_size // options.accumulation,
            options.context_tokens,
            parameter_dtype=dtype,
            compute_dtype=_compute_dtype(options),
            optimizer=options.optimizer,
            checkpointing=options.checkpointing,
            fused_attention=fused,
        )

    def refuse_impossible(self, available_bytes: int | None) -> None:
        """Refuse what weights, gradients and moments alone do not leave room for.

        Their size is exact, activations come on top: this refuses nothing that could fit.

        Raises
        ------
        Infeasible
            Saying what is needed and what there is.
        """
        if self.memory is None or available_bytes is None:
            return
        needed = self.memory.states_bytes
        if needed > available_bytes:
            raise Infeasible(
                f"weights, gradients and optimizer need {needed / _GIB:.1f} GiB, "
                f"the device has {available_bytes / _GIB:.1f} GiB",
                where="model",
                fix="Take a smaller model, quant=bf16 or a larger device",
            )


def expectation(
    config: Mapping[str, Any], options: TrainingConfig, dtype: str, products: str = "native"
) -> Expectation | None:
    """Memory and the operations of each phase; None where the arithmetic knows no such model.

    Parameters
    ----------
    products : str
        ``native``, or ``float32``: they are converted on the way.
    """
    expected = Expected(config, options, dtype)
    if expected.memory is None:
        return None
    architecture = Architecture.from_config(config)
    ideal = _phases(architecture, options, dtype, IDEAL)
    eager = _phases(
        architecture,
        options,
        dtype,
        replace(EAGER, fused=options.compile, causal=options.attention != "eager"),
    )
    multiplied_in = _compute_dtype(options) or dtype
    if products == "float32":
        multiplied_in = products
        eager = {name: _through_float32(operations) for name, operations in eager.items()}
    return Expectation(
        sizes_bytes={"weights_bytes": weights_bytes(architecture, WeightFormat("none", dtype))},
        memory_bytes=expected.memory.total_bytes,
        steps={name: Steps(ideal[name], eager[name]) for name in ideal},
        floor_bytes=expected.memory.states_bytes,
        work=_work(expected.flops, multiplied_in),
    )


def _work(flops: StepFlops | None, dtype: str) -> dict[str, Work]:
    if flops is None:
        return {}
    return {
        "mfu": Work(flops.model, "step_s", dtype),
        "hfu": Work(flops.hardware, "step_s", dtype),
    }


def _phases(
    architecture: Architecture, options: TrainingConfig, dtype: str, execution: Execution
) -> dict[str, tuple[Operation, ...]]:
    step = step_operations(
        architecture,
        options.batch_size // options.accumulation,
        options.context_tokens,
        parameter_dtype=dtype,
        compute_dtype=_compute_dtype(options),
        execution=execution,
        checkpointing=options.checkpointing,
    )
    phases = {
        "forward_s": step.forward * options.accumulation,
        "backward_s": step.backward * options.accumulation,
    }
    if options.optimizer:
        phases["optimizer_s"] = step.optimizer
    return {**phases, "step_s": tuple(o for phase in phases.values() for o in phase)}


def _through_float32(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """The same with float32 products, and with passes that widen what they read and narrow back."""
    made: list[Operation] = []
    for operation in operations:
        if not operation.flops:
            made.append(operation)
            continue
        wide = replace(operation, dtype="float32", bytes=2.0 * operation.bytes)
        # Each number is there once as it is and once as it is multiplied.
        passes = Operation(
            ELEMENTWISE,
            0.0,
            operation.bytes + wide.bytes,
            launches=3 if operation.mode == FORWARD else 6,
            count=operation.count,
            dtype=operation.dtype,
            working_bytes=wide.bytes,
        )
        made += (wide, passes)
    return tuple(made)


def _compute_dtype(options: TrainingConfig) -> str | None:
    return None if options.autocast == "none" else options.autocast


def device_memory_bytes(device_kind: str) -> int | None:
    """All memory of the device: of the first GPU, or of the host as far as its cgroup goes."""
    if device_kind == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(host, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no cgroup v2, or no limit: "max"
        return host


def peak_flops_per_s(device_kind: str, dtype: str) -> tuple[float | None, str]:
    """The device's dense peak in ``dtype`` from its data sheet, or None and why there is none."""
    if device_kind != "cuda":
        return None, "no data sheet gives the peak of this CPU"
    import torch

    name = torch.cuda.get_device_name(0)
    sheet = datasheet_of(name)
    if sheet is None:
        return None, f"there is no data sheet of {name}"
    if dtype == "float32" and torch.backends.cuda.matmul.allow_tf32:
        dtype = "tf32"
    return sheet.peaks.get(dtype), f"the data sheet of {name} gives no peak for {dtype}"
