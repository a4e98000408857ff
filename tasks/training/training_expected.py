"""What arithmetic says of a training step before it runs: FLOPs, memory, and what cannot fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.measure import ConfigError, Infeasible
from orchestrator.measure.wording import gib
from orchestrator.model import (
    EAGER,
    IDEAL,
    Architecture,
    Execution,
    Operation,
    StepFlops,
    TrainingMemory,
    WeightFormat,
    read_architecture,
    step_flops,
    step_operations,
    training_memory,
    weights_bytes,
)
from orchestrator.model.datasheet import datasheet_of
from orchestrator.model.expectation import Expectation, Steps, Work
from orchestrator.tasks.training.options import TrainingConfig


class Expected:
    """FLOPs and memory of the step that is configured.

    Parameters
    ----------
    config : mapping
        The model's Hugging Face configuration.
    dtype : str
        Of the parameters.
    device_kind : str
        ``cuda``, where torch's AdamW updates all tensors at once, or ``cpu``.

    Attributes
    ----------
    flops : StepFlops or None
    memory : TrainingMemory or None
    absent_reason : str or None
        Why the arithmetic knows no such model.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        options: TrainingConfig,
        dtype: str,
        device_kind: str = "cpu",
    ) -> None:
        self.flops: StepFlops | None = None
        self.memory: TrainingMemory | None = None
        self.absent_reason: str | None = None
        try:
            architecture = read_architecture(config)
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
            attention=options.attention,
            accumulated=options.accumulation > 1,
            cuda=device_kind == "cuda",
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
                f"weights, gradients and optimizer need {gib(needed)}, "
                f"the device has {gib(available_bytes)}",
                where="model",
                fix="Take a smaller model, quant=bf16 or a larger device",
            )


def expectation(
    config: Mapping[str, Any], options: TrainingConfig, dtype: str, device_kind: str = "cpu"
) -> Expectation | None:
    """Memory and the operations of each phase; None where the arithmetic knows no such model."""
    expected = Expected(config, options, dtype, device_kind)
    if expected.memory is None:
        return None
    architecture = read_architecture(config)
    ideal = _phases(architecture, options, dtype, IDEAL)
    eager = _phases(
        architecture,
        options,
        dtype,
        replace(EAGER, fused=options.compile, causal=options.attention != "eager"),
    )
    return Expectation(
        sizes_bytes={
            "weights_bytes": weights_bytes(architecture, WeightFormat("none", dtype)),
            "peak_memory_bytes": expected.memory.total_bytes,
        },
        memory_bytes=expected.memory.total_bytes,
        steps={name: Steps(ideal[name], eager[name]) for name in ideal},
        floor_bytes=expected.memory.states_bytes,
        work=_work(expected.flops, {o.dtype for o in ideal["forward_s"] if o.flops}),
    )


def _work(flops: StepFlops | None, dtypes: set[str]) -> dict[str, Work | str]:
    if flops is None:
        return {}
    dtype, *others = sorted(dtypes)
    if others:  # experts under autocast
        several = f"its products are in {' and '.join([dtype, *others])}: no peak is of both"
        return dict.fromkeys(("mfu", "hfu"), several)
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


def _compute_dtype(options: TrainingConfig) -> str | None:
    return None if options.autocast == "none" else options.autocast


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
