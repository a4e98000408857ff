"""What is planned on simulated GPUs that no test here could run."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.telemetry.device import devices
from testing.environments import environment


def planned(*words: str) -> list[tuple[int, str | None, str | None]]:
    """Of each trial of ``engine=vllm``: its GPUs, why it cannot be, and what is doubted."""
    from orchestrator.plan.expand import build
    from orchestrator.plan.preflight import preflight

    found = preflight(build(["engine=vllm", *words], device_kind=lambda cluster: "cuda"), devices)
    return [(t.resources.gpus, t.infeasible, found.doubts.get(t.hash)) for t in found.plan.trials]


@pytest.mark.parametrize("task", ["inference", "serving"])
def test_vllm_has_an_environment_for_gpus(play: Any, task: str) -> None:
    environment("vllm")
    asked = (f"task={task}", "quant=fp32,bf16,fp16", "environment=vllm")
    assert play("h100", planned, *asked) == [(1, None, None)] * 3


@pytest.mark.parametrize("other", ["none", "vllm_cpu"])
def test_vllm_on_a_gpu_without_it_is_infeasible(play: Any, other: str) -> None:
    ((_, reason, _),) = play("h100", planned, f"environment={other}")
    assert reason == "vllm on device=cuda needs vllm: use environment=vllm"
