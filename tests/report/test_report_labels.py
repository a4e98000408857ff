"""Trials and metrics have names that people use, and different trials have different names."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.report.analyse.labels import (
    axis_names,
    axis_text,
    axis_value,
    labels_of,
    plain_label,
)


def test_a_group_choice_goes_bare_and_lengths_become_an_arrow(make):
    plan = make.plan()
    assert list(labels_of(plan).values())[:3] == [
        "fp32 · 512→32",
        "fp32 · 1024→32",
        "bf16 · 512→32",
    ]
    assert list(labels_of(plan)) == [t.hash for t in plan.trials]


def test_an_axis_with_one_value_is_not_repeated_on_every_trial(make):
    plan = make.plan(prompts=(512,))
    assert list(labels_of(plan).values()) == ["fp32", "bf16", "int8", "nf4"]


def test_a_plain_value_is_named_after_its_axis(make):
    plan = make.plan(quants=("fp32",), prompts=(512,))
    trial = replace(plan.trials[0], axes={"task.batch_size": 4, "task.compile": True})
    plan = replace(
        plan,
        trials=(trial,),
        axes={"task.batch_size": ("1", "4"), "task.compile": ("true", "false")},
    )
    assert labels_of(plan)[trial.hash] == "batch 4 · compile on"


def test_axes_that_go_together_are_said_once_and_words_go_bare(make):
    base = make.plan(quants=("fp32",), prompts=(512,)).trials[0]
    rungs = [(False, False, "sync", 1), (True, True, "sync", 1), (True, True, "async", 2)]
    names = ("task.resident_head", "task.resident_norm", "task.transfer", "task.depth")
    trials = tuple(
        replace(base, hash=f"{i:064x}", axes=dict(zip(names, rung, strict=True)))
        for i, rung in enumerate(rungs)
    )
    axes = {n: tuple(dict.fromkeys(str(t.axes[n]) for t in trials)) for n in names}
    plan = replace(make.plan(), trials=trials, axes=axes, baseline={})
    assert list(labels_of(plan).values()) == [
        "resident head off · sync",
        "resident head on · sync",
        "resident head on · async",
    ]


def test_engine_and_format_tell_the_environment_together(make):
    plan = make.plan(quants=("fp32", "bf16", "nf4"), prompts=(512,))
    rows = [("a", "fp32", "none"), ("a", "int8wo", "torchao"), ("b", "fp32", "b")]
    axes = ("engine", "quant", "environment")
    trials = tuple(
        replace(trial, axes=dict(zip(axes, row, strict=True)))
        for trial, row in zip(plan.trials, rows, strict=True)
    )
    values = {a: tuple(dict.fromkeys(t.axes[a] for t in trials)) for a in axes}
    labels = labels_of(replace(plan, trials=trials, axes=values))
    assert list(labels.values()) == ["a · fp32", "a · int8wo", "b · fp32"]


def test_a_vague_word_keeps_its_axis():
    assert axis_text("task.transfer", "async") == "async"
    assert axis_text("task.autocast", "none") == "autocast none"
    assert axis_text("quant", "none") == "none"
    assert axis_text("model.path", "/models/x") == "model /models/x"
    assert axis_text("device.threads", None) == "threads auto"
    assert axis_text("task.disk_bytes_per_s", None) == "disk bytes per s none"


def test_a_sweep_without_axes_is_named_after_what_it_measures(make):
    plan = make.plan(quants=("nf4",), prompts=(512,))
    assert labels_of(plan)[plan.trials[0].hash] == "inference · smollm2_135m · nf4"
    assert plain_label({"task": {"name": "noop", "value": 3}}) == "noop 3"


def test_labels_of_a_plan_are_distinct(make):
    plan = make.plan(prompts=tuple(range(1, 200)))
    assert len(set(labels_of(plan).values())) == len(plan.trials)


def test_axes_of_one_name_are_told_apart():
    assert axis_names(["a.rate", "b.rate", "quant"]) == {
        "a.rate": "a.rate",
        "b.rate": "b.rate",
        "quant": "quant",
    }


def test_a_number_is_never_shown_as_another():
    shown = [axis_value(value) for value in (0.5, 500000.0, 1e-5, 123456.7, 0.3, 0.1 + 0.2)]
    assert shown == ["0.5", "500000", "1e-05", "123456.7", "0.3", "0.30000000000000004"]


def test_long_paths_are_shown_by_their_end():
    assert axis_value("/models/of/somebody/with/long/paths/Llama-3-8B") == "Llama-3-8B"
    assert len(axis_value("x" * 100)) == 28
