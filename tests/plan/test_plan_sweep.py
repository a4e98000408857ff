"""Sweeps: expansion, zip, exclude, narrowing, baseline, dedup, and what the trials then ask for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.attempt import Resources
from orchestrator.plan.compose import Composer
from orchestrator.plan.expand import build
from orchestrator.plan.plan import Plan, TrialState, plan_json
from orchestrator.plan.sweep import read

BASE = "task=noop model=random_tiny"


def rows(plan: Plan, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(trial.axes[key] for key in keys) for trial in plan.trials]


def test_no_axes_is_one_trial(planned: Callable[..., Plan]) -> None:
    plan = planned(BASE)
    assert (plan.sweep, plan.axes, plan.baseline, plan.duplicates) == ("adhoc", {}, {}, 0)
    assert [trial.axes for trial in plan.trials] == [{}]


def test_the_last_axis_varies_fastest(planned: Callable[..., Plan]) -> None:
    plan = planned(f"{BASE} quant=fp32,bf16 task.value=1,2,3")
    assert rows(plan, "quant", "task.value") == list(product(["fp32", "bf16"], [1, 2, 3]))
    assert plan.axes == {"quant": ("fp32", "bf16"), "task.value": ("1", "2", "3")}
    for trial in plan.trials:
        assert trial.identity["task"]["value"] == trial.axes["task.value"]
        expected = {"fp32": "float32", "bf16": "bfloat16"}[str(trial.axes["quant"])]
        assert trial.identity["quant"]["dtype"] == expected


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("task.value=1,2", [1, 2]),
        ("task.value=range(3)", [0, 1, 2]),
        ("task.value=range(1,8,3)", [1, 4, 7]),
        ("task.value=range(3,0,-1)", [3, 2, 1]),
        ("task.value=choice(4,2)", [4, 2]),
        ("task.value=sort(4,2,reverse=true)", [4, 2]),
        ("task.sleep_s=range(0,0.3,0.1)", [0.0, 0.1, 0.2]),
        ("task.sleep_s=1,0.5", [1.0, 0.5]),
        ("quant=fp*", ["fp16", "fp32", "fp4"]),
        ("quant=glob(*,exclude=[fp*,nf4,q*,m*,s*,*wo])", ["bf16", "int8"]),
        ("quant=nf4,int8", ["nf4", "int8"]),
        ("device.threads=null,1", [None, 1]),
    ],
)
def test_the_override_grammar(planned: Callable[..., Plan], word: str, values: list[Any]) -> None:
    plan = planned(f"{BASE} {word}")
    assert [value for (value,) in rows(plan, word.split("=")[0])] == values


def test_shuffle_keeps_every_value(planned: Callable[..., Plan]) -> None:
    plan = planned(f"{BASE} task.value=shuffle(range(20))")
    assert sorted(value for (value,) in rows(plan, "task.value")) == list(range(20))


SWEEP = """\
description: what it is for
set:
  protocol: strict
  task.sleep_s: 0.25
axes:
  quant: fp32,bf16,nf4
  task.value: [1, 2]
repeats: 3
baseline: {quant: fp32}
"""


def test_a_sweep_file(planned: Callable[..., Plan], write: Any) -> None:
    plan = planned(f"{BASE} +sweep=mine", write("sweep/mine.yaml", SWEEP))
    assert (plan.sweep, plan.description) == ("mine", "what it is for")
    assert rows(plan, "quant", "task.value") == list(product(["fp32", "bf16", "nf4"], [1, 2]))
    assert plan.settings.repeats == 3
    assert plan.baseline == {"quant": "fp32"}
    identity = plan.trials[0].identity
    assert (identity["protocol"]["warmup"], identity["task"]["sleep_s"]) == (5, 0.25)


def test_the_command_line_beats_the_file(planned: Callable[..., Plan], write: Any) -> None:
    own = write("sweep/mine.yaml", SWEEP)
    plan = planned(f"{BASE} +sweep=mine quant=nf4 task.sleep_s=0 repeats=1 protocol=quick", own)
    assert rows(plan, "quant", "task.value") == [("nf4", 1), ("nf4", 2)]
    assert plan.settings.repeats == 1
    assert plan.trials[0].identity["task"]["sleep_s"] == 0.0
    assert plan.trials[0].identity["protocol"]["warmup"] == 1
    assert plan.baseline == {}, "the baseline was left out on purpose"


def test_an_axis_can_be_replaced_and_another_added(
    planned: Callable[..., Plan], write: Any
) -> None:
    own = write("sweep/mine.yaml", SWEEP)
    plan = planned(f"{BASE} sweep=mine quant=fp32,int8 task.value=7 seed=1,2", own)
    wanted = list(product(["fp32", "int8"], [7], [1, 2]))
    assert rows(plan, "quant", "task.value", "seed") == wanted
    assert plan.baseline == {"quant": "fp32"}


def test_another_option_than_the_files_comes_without_the_files_refinements(
    planned: Callable[..., Plan], write: Any
) -> None:
    text = "set: {protocol: standard, protocol.warmup: 9}\n"
    own = write("sweep/mine.yaml", text)
    assert planned(f"{BASE} +sweep=mine", own).trials[0].identity["protocol"]["warmup"] == 9
    plan = planned(f"{BASE} +sweep=mine protocol=strict", own)
    assert plan.trials[0].identity["protocol"]["warmup"] == 5
    plan = planned(f"{BASE} +sweep=mine protocol=strict protocol.warmup=3", own)
    assert plan.trials[0].identity["protocol"]["warmup"] == 3


def test_a_sweep_inherits_another(planned: Callable[..., Plan], write: Any) -> None:
    write("sweep/mine.yaml", SWEEP)
    own = write("sweep/more.yaml", "defaults: [mine, _self_]\naxes: {task.value: '9'}\n")
    plan = planned(f"{BASE} +sweep=more", own)
    assert plan.sweep == "more"
    assert rows(plan, "quant", "task.value") == [("fp32", 9), ("bf16", 9), ("nf4", 9)]


ZIP = """\
axes:
  quant: [fp32, bf16]
  task.value: [1, 2, 3]
  task.sleep_s: [0.1, 0.2, 0.3]
zip: [[task.value, task.sleep_s]]
"""


def test_zipped_axes_vary_together(planned: Callable[..., Plan], write: Any) -> None:
    plan = planned(f"{BASE} +sweep=mine", write("sweep/mine.yaml", ZIP))
    together = [(1, 0.1), (2, 0.2), (3, 0.3)]
    wanted = [(quant, *pair) for quant in ("fp32", "bf16") for pair in together]
    assert rows(plan, "quant", "task.value", "task.sleep_s") == wanted


def test_narrowing_takes_zipped_axes_along(planned: Callable[..., Plan], write: Any) -> None:
    own = write("sweep/mine.yaml", ZIP)
    plan = planned(f"{BASE} +sweep=mine quant=fp32 task.value=3,1", own)
    assert rows(plan, "task.value", "task.sleep_s") == [(1, 0.1), (3, 0.3)]
    plan = planned(f"{BASE} +sweep=mine quant=fp32 task.value=8,9 task.sleep_s=0.8,0.9", own)
    assert rows(plan, "task.value", "task.sleep_s") == [(8, 0.8), (9, 0.9)]


def test_exclude(planned: Callable[..., Plan], write: Any) -> None:
    text = """\
axes: {quant: "fp32,bf16,nf4", task.value: "1,2"}
exclude:
  - {quant: fp32, task.value: 2}
  - {quant: "nf*", task.value: [1, 5]}
"""
    plan = planned(f"{BASE} +sweep=mine", write("sweep/mine.yaml", text))
    left = [("fp32", 1), ("bf16", 1), ("bf16", 2), ("nf4", 2)]
    assert rows(plan, "quant", "task.value") == left


def test_an_excluded_combination_is_never_composed(
    planned: Callable[..., Plan], write: Any
) -> None:
    text = """\
axes: {model: "random_tiny,hub", model.id: "null,some/model"}
exclude: [{model: random_tiny, model.id: some/model}, {model: hub, model.id: null}]
"""
    plan = planned("task=noop +sweep=mine", write("sweep/mine.yaml", text))
    assert rows(plan, "model", "model.id") == [("random_tiny", None), ("hub", "some/model")]


def test_duplicates_are_counted(planned: Callable[..., Plan]) -> None:
    plan = planned(f"{BASE} device=cpu,auto,cuda task.value=1,1")
    assert len(plan.trials) == 2
    assert plan.duplicates == 4
    assert len({trial.hash for trial in plan.trials}) == 2


def test_auto_asks_the_cluster_once_and_never_enters_identity() -> None:
    asked: list[str] = []

    def device_kind(cluster: Any) -> str:
        asked.append(f"{cluster.kind} {cluster.address}")
        return "cuda"

    words = [*BASE.split(), "cluster=ray", "cluster.address=head:6379", "task.value=1,2,3"]
    plan = build(words, device_kind=device_kind)
    assert asked == ["ray head:6379"]
    assert {trial.identity["device"]["kind"] for trial in plan.trials} == {"cuda"}
    asked.clear()
    build([*words, "device=cpu"], device_kind=device_kind)
    assert asked == []


def test_a_device_swept_as_a_value_is_resolved_too(planned: Callable[..., Plan]) -> None:
    plan = planned(f"{BASE} device.kind=auto,cpu,cuda")
    assert [trial.identity["device"]["kind"] for trial in plan.trials] == ["cpu", "cuda"]


@pytest.mark.parametrize(
    ("line", "resources"),
    [
        ("task=noop device=cpu", Resources(gpus=0, cpus=1)),
        ("task=noop device=cuda", Resources(gpus=1, cpus=None)),
        ("task=noop device=cpu device.threads=3", Resources(gpus=0, cpus=3)),
        ("task=noop device=cpu device.threads=3 resources.cpus=4", Resources(gpus=0, cpus=4)),
        ("task=noop device=cuda resources.gpus=2 resources.accelerator=H100",
         Resources(gpus=2, cpus=None, accelerator="H100")),
        ("task=noop device=cpu resources.memory_bytes=1000",
         Resources(gpus=0, cpus=1, memory_bytes=1000)),
        ("task=inference device=cpu", Resources(gpus=0, cpus=None)),
        ("task=inference device=cuda", Resources(gpus=1, cpus=None)),
        ("task=inference device=cpu device.threads=2", Resources(gpus=0, cpus=2)),
    ],
)  # fmt: skip
def test_resources(planned: Callable[..., Plan], line: str, resources: Resources) -> None:
    (trial,) = planned(f"{line} model=random_tiny").trials
    assert trial.resources == resources


def test_interpolations_are_resolved_for_each_trial(
    planned: Callable[..., Plan], write: Any
) -> None:
    text = "name: noop\nvalue: ${seed}\nsleep_s: ${.value}\n"
    own = write("task/tied.yaml", text)
    plan = planned("task=tied model=random_tiny seed=1,2 quant=fp32,bf16", own)
    tasks = [trial.identity["task"] for trial in plan.trials]
    assert [(task["value"], task["sleep_s"]) for task in tasks] == [(1, 1.0), (1, 1.0),
                                                                    (2, 2.0), (2, 2.0)]  # fmt: skip
    by_hand = planned("task=noop model=random_tiny seed=2 task.value=2 task.sleep_s=2 quant=fp32")
    assert by_hand.trials[0].hash == plan.trials[2].hash


def test_overlapping_axes_apply_in_order(planned: Callable[..., Plan]) -> None:
    plan = planned(
        "task=noop model=random_tiny model.architecture={hidden_size:128},{hidden_size:256} "
        "model.architecture.num_hidden_layers=1,3"
    )
    got = [trial.identity["model"]["architecture"] for trial in plan.trials]
    sizes = [(tree["hidden_size"], tree["num_hidden_layers"]) for tree in got]
    assert sizes == [(128, 1), (128, 3), (256, 1), (256, 3)]


def test_mappings_on_an_axis_do_not_leak_into_each_other(planned: Callable[..., Plan]) -> None:
    plan = planned(
        "task=noop model=random_tiny model.architecture={hidden_size:128},{vocab_size:512}"
    )
    sizes = [
        (tree["hidden_size"], tree["vocab_size"])
        for tree in (trial.identity["model"]["architecture"] for trial in plan.trials)
    ]
    assert sizes == [(128, 256), (64, 512)]


def test_independent_groups_are_composed_once_each(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[dict[str, str]] = []
    original = Composer.compose

    def counted(self: Composer, choices: dict[str, str]) -> Any:
        composed.append(choices)
        return original(self, choices)

    monkeypatch.setattr(Composer, "compose", counted)
    line = f"{BASE} quant=fp32,bf16,fp16,nf4 protocol=quick,standard,strict task.value=range(5)"
    plan = planned(line)
    assert len(plan.trials) == 4 * 3 * 5
    assert len(composed) == 1 + 3 + 2

    # The short cut must not be seen in the result.
    monkeypatch.setattr(Composer, "independent", lambda self, choices: False)
    composed.clear()
    whole = planned(line)
    assert len(composed) == 4 * 3
    assert [trial.hash for trial in whole.trials] == [trial.hash for trial in plan.trials]
    assert whole == plan


def test_a_group_that_reaches_elsewhere_is_composed_whole(
    planned: Callable[..., Plan], write: Any
) -> None:
    write("experiment/small.yaml", "# @package _global_\nseed: 4\ntask: {value: 1}\n")
    own = write(
        "experiment/large.yaml",
        "# @package _global_\ndefaults: [{override /quant: nf4}, _self_]\nresources: {cpus: 2}\n",
    )
    plan = planned(f"{BASE} +experiment=small,large protocol=quick,strict", own)
    got = [
        (trial.identity["seed"], trial.identity["quant"]["scheme"], trial.resources.cpus)
        for trial in plan.trials
    ]
    assert got == [(4, "none", 1), (4, "none", 1), (0, "nf4", 2), (0, "nf4", 2)]
    assert [trial.identity["protocol"]["warmup"] for trial in plan.trials] == [1, 5, 1, 5]


KEYS = {
    "quant": ["fp32", "bf16", "nf4"],
    "protocol": ["quick", "standard"],
    "task.value": [1, 2, 3],
    "seed": [0, 5],
}


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(sorted(KEYS)), st.data())
def test_every_combination_is_there_once(keys: list[str], data: st.DataObject) -> None:
    chosen = {
        key: data.draw(st.lists(st.sampled_from(KEYS[key]), min_size=1, max_size=3, unique=True))
        for key in keys[: data.draw(st.integers(1, 4))]
    }
    words = [f"{key}={','.join(map(str, values))}" for key, values in chosen.items()]
    plan = build([*BASE.split(), *words], device_kind=lambda cluster: "cpu")
    varied = [key for key, values in chosen.items() if len(values) > 1]
    wanted = list(product(*(chosen[key] for key in varied)))
    assert [tuple(trial.axes[key] for key in varied) for trial in plan.trials] == wanted
    assert len({trial.hash for trial in plan.trials}) == len(wanted)


def test_axes_are_counted_without_listing_them() -> None:
    words = ["sweep.allow_large=true", "task.value=range(1000000000)", "seed=range(1000000000)"]
    assert read(words, Composer()).count == 10**18


def test_plan_json(planned: Callable[..., Plan]) -> None:
    plan = planned(f"{BASE} task.value=1,2,3")
    cached, failed, new = plan.trials
    told = plan_json(
        plan,
        {
            cached.hash: TrialState("cached", predicted={"memory_bytes": 5}),
            failed.hash: TrialState("failed", "out of memory"),
        },
    )
    assert told["sweep"] == "adhoc"
    states = [(trial["state"], trial["reason"], trial["predicted"]) for trial in told["trials"]]
    assert states == [
        ("cached", None, {"memory_bytes": 5}),
        ("failed", "out of memory", None),
        ("new", None, None),
    ]
    assert told["trials"][2] == {
        "hash": new.hash,
        "axes": {"task.value": 3},
        "state": "new",
        "reason": None,
        "resources": {"gpus": 0, "cpus": 1, "memory_bytes": None, "accelerator": None},
        "predicted": None,
        "config": new.identity,
    }


def test_trials_do_not_share_their_configuration(planned: Callable[..., Plan]) -> None:
    plan = planned(f"{BASE} task.value=1,2")
    first, second = plan.trials
    first.identity["model"]["architecture"]["hidden_size"] = 1
    assert second.identity["model"]["architecture"]["hidden_size"] == 64
