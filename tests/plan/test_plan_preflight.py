"""What is predicted before anything runs, and what is done about what cannot fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from orchestrator.model import Measured
from orchestrator.model.known_ceilings import keep_ceilings, load_this
from orchestrator.plan.expand import build
from orchestrator.plan.plan import plan_json
from orchestrator.plan.preflight import memory_available, preflight

WORDS = ["device=cpu", "quant=bf16", "model=size/20m,known/llama_2_70b", "task.prompt_tokens=64"]
LIMIT = "resources.memory_bytes=8000000000"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path))
    monkeypatch.setattr("orchestrator.plan.preflight.emulates_half_precision", lambda: False)


def plan_of(*words: str) -> Any:
    return build(list(words), device_kind=lambda cluster: "cpu")


def test_what_cannot_fit_is_warned_of() -> None:
    plan = plan_of(*WORDS, LIMIT)
    found = preflight(plan)
    assert found.plan.trials == plan.trials
    assert len(found.warnings) == 1
    assert "1 trial cannot fit" in found.warnings[0]
    assert "preflight=skip" in found.warnings[0]
    small, large = (found.predicted[trial.hash] for trial in plan.trials)
    assert small["weights_bytes"] == pytest.approx(2 * 21_840_768, rel=1e-4)
    assert large["memory_bytes"] > 130e9


def test_skip_makes_it_infeasible_and_off_does_nothing() -> None:
    plan = plan_of(*WORDS, LIMIT, "preflight=skip")
    found = preflight(plan)
    small, large = found.plan.trials
    assert small.infeasible is None
    assert "needs at least" in large.infeasible
    assert not found.warnings
    off = preflight(plan_of(*WORDS, LIMIT, "preflight=off"))
    assert not off.predicted
    assert not off.warnings


def test_what_fits_but_for_the_estimate_is_never_refused() -> None:
    plan = plan_of("device=cpu", "quant=bf16", "model=size/20m", "preflight=skip")
    trial = plan.trials[0]
    predicted = preflight(plan).predicted[trial.hash]
    between = (predicted["weights_bytes"] + predicted["kv_bytes"] + predicted["memory_bytes"]) / 2
    resources = dataclasses.replace(trial.resources, memory_bytes=int(between))
    tight = dataclasses.replace(plan, trials=(dataclasses.replace(trial, resources=resources),))
    found = preflight(tight)
    assert found.plan.trials[0].infeasible is None
    assert "may not fit" in found.warnings[0]


def test_times_need_ceilings_of_this_machine() -> None:
    plan = plan_of("device=cpu", "quant=fp32", "model=size/20m", "task.prompt_tokens=64")
    digest = plan.trials[0].hash
    assert preflight(plan, times=True).predicted[digest]["ttft_s"] is None
    assert "ttft_s" not in preflight(plan).predicted[digest]
    products = {"product.far.float32": ((5e5, 1.0, 1e-5),)}
    flat = Measured("this", products, ((1e6, 1e10),), ((1e6, 1e10),), 1e-5, 2**33)
    keep_ceilings("here", flat, this="cpu")
    assert load_this() == flat
    found = preflight(plan, times=True).predicted[digest]
    assert 0.005 < found["ttft_s"] < 1
    assert 0.005 < found["tpot_s"] < 0.2
    keep_ceilings("busy", dataclasses.replace(flat, spread=9.0), this="cpu")
    assert preflight(plan, times=True).predicted[digest]["ttft_s"] is None


def test_predictions_stand_in_the_plan() -> None:
    from orchestrator.plan.plan import TrialState

    plan = plan_of("device=cpu", "model=size/20m", "quant=fp32")
    found = preflight(plan)
    states = {t.hash: TrialState(predicted=found.predicted[t.hash]) for t in plan.trials}
    tree = plan_json(plan, states)
    assert tree["trials"][0]["predicted"]["weights_bytes"] > 80e6


def test_tasks_without_arithmetic_pass() -> None:
    plan = plan_of("task=noop", "device=cpu")
    found = preflight(plan)
    assert found.plan == plan
    assert found.predicted == {}


def test_memory_of_other_machines_is_not_guessed() -> None:
    plan = plan_of(*WORDS)
    cluster = dataclasses.replace(plan.settings.cluster, kind="ray", address="auto")
    assert memory_available(plan.trials[0], cluster) is None
    here = memory_available(plan.trials[0], plan.settings.cluster)
    assert here is not None
    assert here > 1e8


def test_a_gpu_that_is_not_here_is_doubted() -> None:
    plan = plan_of("device=cuda,cpu", "task=noop")
    doubts = preflight(plan).doubts
    assert list(doubts.values()) == ["there is no GPU here"]
    (doubted,) = doubts
    assert {t.hash: t for t in plan.trials}[doubted].identity["device"]["kind"] == "cuda"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("quant=bf16", "task.prompt_tokens=512"), "1 trial in half precision"),
        (("quant=fp32,nf4", "task.prompt_tokens=512"), "1 trial in half precision"),
        (("quant=bf16,nf4", "task.prompt_tokens=512"), "2 trials in half precision"),
        (("quant=fp32", "task.prompt_tokens=512"), None),
        (("quant=bf16", "task.prompt_tokens=8"), None),  # too little work to notice
        (("quant=bf16", "task.prompt_tokens=512", "device=cuda"), None),
        (("quant=bf16", "task.prompt_tokens=512", "preflight=off"), None),
    ],
)
def test_half_precision_that_this_cpu_emulates_is_told_before_it_runs(
    words: tuple[str, ...], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.plan.preflight.emulates_half_precision", lambda: True)
    found = preflight(plan_of("device=cpu", "model=size/20m", *words))
    assert len(found.warnings) == (told is not None)
    assert all(line.startswith(str(told)) for line in found.warnings)
    assert all(trial.infeasible is None for trial in found.plan.trials)


@pytest.mark.parametrize("words", [("quant=bf16",), ("quant=fp32", "task.autocast=bfloat16")])
@pytest.mark.parametrize("emulates", [True, False])
def test_training_in_numbers_that_this_cpu_emulates_is_left_out_where_asked_for(
    words: tuple[str, ...], emulates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.plan.preflight.emulates_half_precision", lambda: emulates)
    asked = ("task=training", "device=cpu", "model=size/20m", *words)
    warned, skipped = (preflight(plan_of(*asked, f"preflight={m}")) for m in ("warn", "skip"))
    assert warned.plan.trials[0].infeasible is None
    assert len(warned.warnings) == emulates
    assert ("no instructions" in str(skipped.plan.trials[0].infeasible)) is emulates
    assert not skipped.warnings
    plain = preflight(plan_of(*asked[:3], "quant=fp32", "preflight=skip"))
    assert plain.plan.trials[0].infeasible is None


@dataclasses.dataclass(frozen=True)
class Card:
    name: str
    memory_bytes: int


def test_a_gpu_without_memory_of_its_own_refuses_nothing_and_is_named() -> None:
    words = ["device=cuda", "quant=bf16", "model=known/llama_2_70b", "task.prompt_tokens=64"]
    plan = build([*words, "preflight=skip"], device_kind=lambda cluster: "cuda")
    (trial,) = plan.trials
    unified = [Card("NVIDIA GB10", 0)]
    assert memory_available(trial, plan.settings.cluster, lambda: unified) is None
    found = preflight(plan, lambda: unified)
    assert found.plan.trials[0].infeasible is None
    assert not found.doubts
    assert [w for w in found.warnings if "NVIDIA GB10 reports no memory of its own" in w]
    # One that has its own is still held to it.
    small = preflight(plan, lambda: [Card("NVIDIA T4", 16 << 30)])
    assert "needs at least" in (small.plan.trials[0].infeasible or "")
    assert not [w for w in small.warnings if "reports no memory" in w]
