"""Names for people, and parameters that MLflow takes whole."""

from __future__ import annotations

import hashlib

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.attempt import Outcome, PlannedAttempt, Trial
from orchestrator.conditions import Conditions
from orchestrator.errors import StoreError
from orchestrator.measure.wording import format_name
from orchestrator.plan.expand import build
from orchestrator.record.artifacts import config_yaml, safe_name
from orchestrator.record.build import Builder
from orchestrator.record.params import MAX_PARAM_CHARS, flatten, legal_key, tag_value
from orchestrator.record.run_names import model_label, trial_label


@pytest.mark.parametrize(
    ("axes", "identity", "label"),
    [
        (
            {"quant": "nf4", "task.prompt_tokens": 512, "task.new_tokens": 128},
            {},
            "nf4 · 512→128 · a1",
        ),
        ({"task.prompt_tokens": 512}, {"task": {"new_tokens": 64}}, "512→64 · a1"),
        ({"task.batch_size": 1, "task.compile": True}, {}, "batch_size=1 · compile=true · a1"),
        ({"model.path": "/a/b/c.gguf", "device.threads": None}, {}, "c.gguf · threads=null · a1"),
        ({}, {"task": {"name": "noop"}}, "noop · a1"),
    ],
)
def test_trial_labels(axes: dict[str, object], identity: dict[str, object], label: str) -> None:
    assert trial_label(axes, 1, identity) == label


def test_a_long_label_keeps_its_attempt_number() -> None:
    label = trial_label({"a": "x" * 1000}, 12)
    assert len(label) == 200
    assert label.endswith("… · a12")
    assert trial_label({"a": "x"}, 2, label="chosen") == "chosen · a2"


def test_model_and_quant_labels() -> None:
    assert model_label({"model": {"id": "a/b"}}) == "a/b"
    assert model_label({"model": {"id": None, "path": "/m/weights.gguf"}}) == "weights.gguf"
    random = {"model": {"source": "random", "architecture": {"model_type": "llama"}}}
    assert model_label(random) == "random llama"
    assert format_name({"scheme": "none", "dtype": "float32"}) == "fp32"
    assert format_name({"scheme": "nf4", "dtype": "bfloat16"}) == "nf4"


def test_parameters_are_flat_and_complete() -> None:
    tree = {"task": {"n": 1, "x": None, "on": True, "list": [1, "a"], "empty": {}}, "seed": 0}
    assert flatten(tree) == {
        "task.n": "1",
        "task.x": "null",
        "task.on": "true",
        "task.list": '[1, "a"]',
        "task.empty": "{}",
        "seed": "0",
    }


def test_a_value_mlflow_would_cut_is_hashed() -> None:
    exact, long = "x" * MAX_PARAM_CHARS, "y" * (MAX_PARAM_CHARS + 1)
    flat = flatten({"exact": exact, "long": long})
    assert flat["exact"] == exact
    assert hashlib.sha256(long.encode()).hexdigest() in flat["long"]
    assert "6001 characters" in flat["long"]


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=400), st.text(max_size=400))
@example(".", "_")
def test_legal_keys_are_legal_and_distinct(one: str, other: str) -> None:
    from mlflow.utils.validation import _validate_param_name

    _validate_param_name(legal_key(one))
    assert len(legal_key(one)) <= 250
    assert (legal_key(one) == legal_key(other)) == (one == other)


def test_a_cut_tag_says_so() -> None:
    assert tag_value("short") == "short"
    assert tag_value("z" * 9000).endswith("… (whole in report.json)")
    assert len(tag_value("z" * 9000)) == 8000


leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.dictionaries(
    st.text(), st.recursive(leaf, lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)


@settings(deadline=None, max_examples=60)
@given(trees)
def test_config_yaml_gives_back_every_value(tree: dict[str, object]) -> None:
    assert yaml.safe_load(config_yaml(tree)) == tree


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../b", "", ".", "a\\..\\b", "a\0b", "x" * 300, ".."]
)
def test_artifact_names_cannot_escape(name: str) -> None:
    with pytest.raises(StoreError):
        safe_name(name)


@pytest.mark.parametrize(("name", "safe"), [("a/b.txt", "a/b.txt"), ("./a", "a"), ("a//b", "a/b")])
def test_ordinary_names_pass(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_an_attempt_is_found_by_what_its_environment_has_of_what_counts() -> None:
    words = ["environment=transformers_5_0,transformers_5_23", "quant=bf16"]
    trials = build(words, device_kind=lambda cluster: "cpu").trials
    assert [_environment_tag(trial) for trial in trials] == [
        "torch 2.13.0+cpu, transformers 5.0.0",
        "torch 2.13.0+cpu, transformers 5.23.0",
    ]
    (without,) = build(["quant=bf16"], device_kind=lambda cluster: "cpu").trials
    assert _environment_tag(without) is None


def _environment_tag(trial: Trial) -> str | None:
    attempt = PlannedAttempt(trial, 1, "a" * 32, "versions")
    conditions = Conditions({}, {"python": "3.11", "torch": "1", "transformers": "1"}, {})
    report = attempt.report(Outcome.OK, conditions=conditions)
    return (
        Builder("s" * 32, "versions", "driver")
        .attempt_finish(report, trial)
        .tags.get("environment")
    )
