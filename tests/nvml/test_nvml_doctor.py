"""What doctor says of GPUs, and of a verdict policy tried on simulated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from orchestrator.commands.doctor import _rehearsed
from orchestrator.commands.findings import _gpus

CONF = Path(__file__).resolve().parents[2] / "conf" / "verdict" / "default.yaml"
# The machine that tests run on is busy with tests: its own state is no subject here.
HOST = ("steal", "other_load", "cgroup_throttling", "swap")


def findings() -> list[tuple[str, str]]:
    policy = yaml.safe_load(CONF.read_text())
    policy["rules"] = {k: v for k, v in policy["rules"].items() if k not in HOST}
    return [(f.level, f.what) for f in (*_gpus(), *_rehearsed(policy, seconds=0.4))]


def test_a_healthy_gpu(play: Any) -> None:
    gpu, policy = play("h100", findings)
    assert gpu[0] == "ok"
    assert gpu[1].startswith("simulated GPU NVIDIA H100 80GB HBM3 (GPU-")
    assert policy == ("ok", "a measurement here would be valid")


def test_a_policy_that_refuses_names_its_rule(play: Any) -> None:
    hot = {"devices": [{"model": "h100", "steps": {"reasons": ["sw_thermal_slowdown"]}}]}
    _, policy, rule = play(hot, findings)
    assert policy == ("fail", "a measurement here would be invalid")
    assert rule[0] == "fail"
    assert rule[1].startswith("thermal_slowdown: clocks were cut for heat")


def test_a_driver_that_does_not_work_is_no_machine_without_a_gpu(play: Any) -> None:
    driver, policy, unknown = play("mismatch", findings)
    assert driver[0] == "fail"
    assert "driver and NVML library are of different versions" in driver[1]
    assert policy == ("warn", "a measurement here would be unverified")
    assert unknown[1].startswith("not to be checked: thermal_slowdown")
    assert "different versions" in unknown[1]


def test_one_gpu_of_several_that_is_gone(play: Any) -> None:
    gone = [{"function": "*", "from_s": 0, "error": "GPU_IS_LOST"}]
    lines = play({"devices": [{"model": "h100", "errors": gone}, {"model": "h100"}]}, findings)
    assert [level for level, _ in lines[:2]] == ["ok", "fail"]
    assert "the GPU fell off the bus" in lines[1][1]
