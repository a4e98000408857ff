"""The hash: what it must not depend on, what it must, and rebuilding what was stored."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.plan.expand import build, plan_of
from orchestrator.plan.identity import canonical_json, config_hash, rebuild

numbers = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
mappings = st.dictionaries(st.text(max_size=5), trees, max_size=5)


def reordered(tree: Any, order: random.Random) -> Any:
    if isinstance(tree, dict):
        keys = list(tree)
        order.shuffle(keys)
        return {key: reordered(tree[key], order) for key in keys}
    return [reordered(item, order) for item in tree] if isinstance(tree, list) else tree


def respelled(tree: Any) -> Any:
    """Whole numbers as floats, as far as floats are exact."""
    if isinstance(tree, dict):
        return {key: respelled(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [respelled(item) for item in tree]
    return float(tree) if isinstance(tree, int) and not isinstance(tree, bool) else tree


def tiny(*words: str) -> list[str]:
    return ["task=noop", "model=random_tiny", "device=cpu", *words]


def hash_of(*words: str, config_dirs: tuple[Path, ...] = ()) -> str:
    plan = build(tiny(*words), config_dirs=config_dirs, device_kind=lambda cluster: "cpu")
    (trial,) = plan.trials
    return trial.hash


@given(mappings, st.randoms(use_true_random=False))
def test_hash_ignores_the_order_of_keys(tree: dict[str, Any], order: random.Random) -> None:
    assert config_hash(tree) == config_hash(reordered(tree, order))


@given(mappings)
def test_hash_ignores_whether_a_whole_number_is_int_or_float(tree: dict[str, Any]) -> None:
    assert config_hash(tree) == config_hash(respelled(tree))


@given(mappings)
def test_hash_survives_storage_as_json(tree: dict[str, Any]) -> None:
    assert config_hash(tree) == config_hash(json.loads(json.dumps(tree)))


@given(mappings, st.text(max_size=5), scalars, scalars)
def test_hash_tells_values_apart(tree: dict[str, Any], key: str, one: Any, other: Any) -> None:
    differ = type(one) is not type(other) or one != other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        differ = one != other or isinstance(one, bool) is not isinstance(other, bool)
    same_hash = config_hash({**tree, key: one}) == config_hash({**tree, key: other})
    assert same_hash is not differ


def test_true_is_not_one_and_text_is_not_a_number() -> None:
    assert len({config_hash({"a": value}) for value in (True, 1, "1", "true", None)}) == 5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused_by_name(value: float) -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture\.x.*finite"):
        canonical_json({"model": {"architecture": {"x": value}}})


def test_things_that_are_no_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="a set cannot be part"):
        canonical_json({"x": {1}})


def test_canonical_json_is_what_it_always_was() -> None:
    # Stored results are found by this text: changing it orphans every result there is.
    tree = {"b": [1.0, 2.5, None], "a": {"z": True, "y": "é", "x": -0.0, "w": 1e-5}}
    text = '{"a":{"w":1e-05,"x":0,"y":"\\u00e9","z":true},"b":[1,2.5,null]}'
    assert canonical_json(tree) == text
    digest = "9aaa2451e58bff3ba006f1b0a41fcedfe30a1d6ee1df36287004946b6aa1d0ff"
    assert config_hash(tree) == digest


SLOW = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(st.integers(0, 10**6))
def test_spellings_of_a_number_are_one_trial(value: int) -> None:
    whole = f"task.value={value},{value}.0,'{value}',\"{value}\""
    real = f"task.sleep_s={value},{value}.0,'{value}',{value}e0"
    plan = build(tiny(whole, real), device_kind=lambda cluster: "cpu")
    assert len(plan.trials) == 1
    assert plan.duplicates == 15
    task = plan.trials[0].identity["task"]
    assert (task["value"], task["sleep_s"]) == (value, float(value))
    assert type(task["value"]) is int
    assert type(task["sleep_s"]) is float


QUANT = {
    "fp32": ("none", "float32", "false"),
    "bf16": ("none", "bfloat16", "false"),
    "int8": ("int8", "bfloat16", "false"),
    "nf4": ("nf4", "bfloat16", "true"),
    "fp4": ("fp4", "bfloat16", "true"),
}


@SLOW
@given(st.sampled_from(sorted(QUANT)), st.sampled_from(sorted(QUANT)), st.randoms())
def test_a_group_and_its_values_by_hand_are_one_trial(
    wanted: str, start: str, order: random.Random
) -> None:
    scheme, dtype, double = QUANT[wanted]
    words = [
        f"quant={start}",
        f"quant.scheme={scheme}",
        f"quant.dtype={dtype}",
        f"quant.double_quant={double}",
    ]
    order.shuffle(words)
    assert hash_of(*words) == hash_of(f"quant={wanted}")


def test_a_file_of_ones_own_with_the_same_values_is_the_same_trial(write: Any) -> None:
    own = write("quant/mine.yaml", "double_quant: yes\ndtype: bfloat16\nscheme: nf4\n")
    assert hash_of("quant=mine", config_dirs=(own,)) == hash_of("quant=nf4")


def test_a_changed_default_is_another_trial(write: Any) -> None:
    own = write("protocol/mine.yaml", "defaults: [quick, _self_]\n")
    before = hash_of("protocol=mine", config_dirs=(own,))
    assert before == hash_of("protocol=quick")
    write("protocol/mine.yaml", "defaults: [quick, _self_]\nwarmup: 2\n")
    assert hash_of("protocol=mine", config_dirs=(own,)) != before


IN_IDENTITY = (
    "seed=1 task.value=1 quant=nf4 protocol=standard device.threads=1 "
    "model.architecture.hidden_size=128 +model.architecture.rope_theta=5e5"
)


@pytest.mark.parametrize("word", IN_IDENTITY.split())
def test_identity_reaches_the_hash(word: str) -> None:
    assert hash_of(word) != hash_of()


NOT_IN_IDENTITY = (
    "repeats=3 force=true retry.failed=true isolate.start=spawn timeout_s=5 preflight=off "
    "resources.cpus=1 tracking.root=elsewhere telemetry=off verdict=off cluster=ray "
    "sweep.name=other"
)


@pytest.mark.parametrize("word", NOT_IN_IDENTITY.split())
def test_settings_do_not_reach_the_hash(word: str) -> None:
    assert hash_of(word) == hash_of()


def test_identity_has_the_agreed_shape(planned: Any) -> None:
    (trial,) = planned("task=noop model=random_tiny").trials
    identity = trial.identity
    assert list(identity) == [
        "schema", "task", "engine", "load", "model", "quant", "protocol", "device", "environment",
        "seed",
    ]  # fmt: skip
    assert identity["schema"] == 2
    assert identity["engine"] is None  # noop runs on none
    assert identity["load"] is None
    assert identity["device"] == {"kind": "cpu", "threads": None}
    assert identity["model"]["architecture"]["hidden_size"] == 64
    assert trial.hash == config_hash(identity)
    assert json.loads(json.dumps(identity)) == identity


def test_rebuild_returns_what_was_stored(planned: Any) -> None:
    line = "task=noop model=random_tiny +model.architecture.rope_theta=1e4,null task.sleep_s=0.5"
    for trial in planned(line).trials:
        stored = json.loads(canonical_json(trial.identity))
        rebuilt = rebuild(stored)
        assert rebuilt == trial.identity
        assert config_hash(rebuilt) == trial.hash
        assert isinstance(rebuilt["task"]["sleep_s"], float)


def test_rebuild_never_resolves_stored_text() -> None:
    (trial,) = build(tiny(), device_kind=lambda cluster: "cpu").trials
    tree = json.loads(json.dumps(trial.identity))
    tree["model"]["architecture"]["model_type"] = "${oc.env:HOME}"
    assert rebuild(tree)["model"]["architecture"]["model_type"] == "${oc.env:HOME}"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 1, "schema version 1"),
        ("engine", {"name": "transformers"}, "engine: is not what this task takes"),
        ("load", {"rate": 1.0}, "load: is not what this task takes"),
        ("extra", 1, "unknown field extra"),
        ("quant.schem", "nf4", r"unknown field quant\.schem\. This version does not"),
        ("quant.scheme", "nf5", "not one of"),
        ("quant.dtype", ..., r"has no field quant\.dtype"),
        ("task.value", "x", "Integer"),
        ("task.name", "nosuch", "unknown task"),
        ("task", [], "without a task name"),
        ("device.kind", "auto", "never says auto"),
        ("seed", "7", "not an int"),
        ("seed", -1, "less than 0"),
        ("model.id", "x", "no effect"),
        ("model.architecture", None, "needs it"),
        ("quant", None, "expected fields"),
    ],
)
def test_rebuild_refuses(path: str, value: Any, message: str) -> None:
    (trial,) = build(tiny(), device_kind=lambda cluster: "cpu").trials
    tree = json.loads(json.dumps(trial.identity))
    *parents, name = path.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    if value is ...:
        del node[name]
    else:
        node[name] = value
    with pytest.raises(ConfigError, match=message):
        rebuild(tree)


def test_a_plan_of_a_stored_identity(planned: Any) -> None:
    plan = planned("task=noop model=random_tiny timeout_s=7 task.value=3")
    again = plan_of(json.loads(json.dumps(plan.trials[0].identity)), plan.settings)
    assert [trial.hash for trial in again.trials] == [plan.trials[0].hash]
    assert again.trials[0].timeout_s == 7
    assert again.trials[0].resources == plan.trials[0].resources


def test_an_option_that_came_later_moves_no_hash_that_was_recorded_before() -> None:
    words = ["task=serving", "engine=llamacpp", "quant=q4_0", "model=smollm2_135m", "device=cpu"]

    def identity(*more: str) -> dict[str, Any]:
        (trial,) = build([*words, *more], device_kind=lambda cluster: "cpu").trials
        assert trial.hash == config_hash(trial.identity)
        # As stored, and as an older program stored it.
        assert rebuild(json.loads(json.dumps(trial.identity))) == trial.identity
        return trial.identity

    usual = identity()
    assert not {"turns", "think_s"} & usual["load"].keys()
    assert identity("load.turns=1", "load.think_s=0") == usual
    assert identity("load.turns=3")["load"] == {**usual["load"], "turns": 3}
    with pytest.raises(ConfigError, match="less than 1"):
        rebuild({**usual, "load": {**usual["load"], "turns": 0}})
    swept = build([*words, "load.turns=1,2"], device_kind=lambda cluster: "cpu")
    assert [trial.identity for trial in swept.trials] == [usual, identity("load.turns=2")]
