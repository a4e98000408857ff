"""Options that change nothing: a line says so."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from orchestrator.engines.registry import ENGINES
from orchestrator.measure.registry import TASKS
from orchestrator.plan.schema import IDENTITY_KEYS, SETTING_KINDS, LoadConfig

from .conftest import Planner

TINY = "model=random_tiny device=cpu"


@pytest.mark.parametrize(
    ("line", "key", "because"),
    [
        ("task=streaming task.transfer=sync task.depth=4", "task.depth", "task.transfer=sync"),
        ("task=streaming task.transfer=sync task.depth=1,2", "task.depth", "task.transfer=sync"),
        ("task=streaming task.transfer=sync task.workers=2", "task.workers", "task.transfer=sync"),
        ("task=training task.compile_scope=model", "task.compile_scope", "task.compile=false"),
        ("task=quality protocol=standard", "protocol", "task=quality"),
        ("task=profile protocol.warmup=3", "protocol.warmup", "task=profile"),
        ("task=quality engine.compile=true", "engine.compile", "task=quality"),
        ("task=quality engine.cache=dynamic,static", "engine.cache", "task=quality"),
        ("task=inference search.over=load.rate", "search.over", "search=none"),
        ("telemetry=off telemetry.host_period_s=3", "telemetry.host_period_s", "telemetry.enabled"),
        ("cluster=ray cluster.cpus=3", "cluster.cpus", "cluster=ray"),
        ("task=inference slo.ttft_s=0.5", "slo.ttft_s", "task=inference, which is under no load"),
    ],
)
def test_what_has_no_effect_is_said(planned: Planner, line: str, key: str, because: str) -> None:
    told = planned(f"{TINY} {line}").notes
    assert any(note.startswith(f"{key} has no effect on {because}") for note in told), told


@pytest.mark.parametrize("line", ["task=attention", "task=numerics", "task=ceilings"])
def test_what_loads_no_model_takes_none(planned: Planner, line: str) -> None:
    assert planned(f"{line} {TINY}").notes == (f"model has no effect on {line}",)


def test_what_only_computes_is_not_repeated(planned: Planner) -> None:
    line = "task=estimate model=known/llama_7b device=cpu"
    assert planned(f"{line} repeats=3").notes == ("repeats has no effect on task=estimate",)
    assert "seed has no effect on task=estimate" in planned(f"{line} seed=1,2").notes


def test_a_sweep_file_is_looked_at_as_well(planned: Planner, write: Any) -> None:
    own = write("sweep/mine.yaml", "set: {task: quality, protocol: strict}\n")
    told = planned("+sweep=mine", own).notes
    assert told == ("sweep mine, protocol has no effect on task=quality",)


@pytest.mark.parametrize(
    "line",
    [
        "task=quality protocol=quick environment=none slo=none search=none repeats=1 seed=0",
        "task=streaming task.transfer=sync task.depth=1",
        "task=streaming task.transfer=sync,async task.depth=4",
        "task=training task.compile=false,true task.compile_scope=model",
        "task=quality,inference protocol=standard",
        "+sweep=streaming task.transfer=sync",
        "+sweep=capacity search=none",
    ],
)
def test_what_is_usual_or_has_an_effect_elsewhere_is_not(planned: Planner, line: str) -> None:
    assert planned(f"{line} {TINY}").notes == ()


def test_a_line_says_which_trials_measure_the_same(planned: Planner) -> None:
    line = f"{TINY} task=streaming task.transfer=sync,async task.depth=1,2,4"
    (note,) = planned(line).notes
    assert "task.depth has no effect on task.transfer=sync: 2 trials" in note
    (note,) = planned(f"{TINY} task=inference,attention quant=fp32 model=random_tiny,random").notes
    assert "model has no effect on task=attention: 1 trial of" in note
    apart = "sweep.exclude=[{task.transfer:sync,task.depth:2},{task.transfer:sync,task.depth:4}]"
    left = planned(f"{line} {apart}")
    assert left.notes == ()
    assert len(left.trials) == 4


def test_what_depends_on_another_option_names_one_of_its_own_group() -> None:
    """A slip in a declaration would be found by whoever asks for the option."""
    tasks = [TASKS.find(name) for name in TASKS.names()]
    engines = [ENGINES.find(name) for name in ENGINES.names()]
    configs = [each.config for each in (*tasks, *engines)]
    for kind in (*configs, LoadConfig, *SETTING_KINDS.values()):
        names = {option.name for option in fields(kind)}
        for option in fields(kind):
            assert set(option.metadata.get("only") or ()) <= names - {option.name}, option.name
    for task in tasks:
        assert {key.partition(".")[0] for key in task.unread} <= set(IDENTITY_KEYS), task.name
