"""Groups: what ships composes as Hydra composes it, and a person's own join in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from orchestrator.attempt import Trial
from orchestrator.plan.compose import Composer
from orchestrator.plan.expand import build, settings_of
from orchestrator.plan.places import conf_directory
from orchestrator.plan.plan import Plan
from orchestrator.plan.plugged_in import PLUGGED_IN
from orchestrator.plan.schema import Settings

GROUPS = ("model", "quant", "protocol", "device", "cluster", "tracking", "telemetry", "verdict")
NEEDED = {
    "hub": "model.id=some/model",
    "path": "model.path=/nowhere",
    "gguf": "model.path=/nowhere.gguf",
    "server": "tracking.uri=http://localhost:5000",
}


def shipped() -> list[tuple[str, str]]:
    return [
        (group, file.stem)
        for group in GROUPS
        for file in sorted((conf_directory() / group).glob("*.yaml"))
    ]


@pytest.mark.parametrize(("group", "option"), shipped())
def test_every_option_that_ships_plans(
    planned: Callable[..., Plan], group: str, option: str
) -> None:
    words = {"model": "random_tiny", group: option}
    line = " ".join(f"{key}={value}" for key, value in words.items())
    assert len(planned(f"task=noop {line} {NEEDED.get(option, '')}").trials) == 1


@pytest.mark.parametrize(
    "sweep", sorted(f.stem for f in (conf_directory() / "sweep").glob("*.yaml"))
)
def test_every_sweep_that_ships_plans(planned: Callable[..., Plan], sweep: str) -> None:
    plan = planned(f"+sweep={sweep}")
    assert plan.sweep == sweep
    assert plan.description
    # Some rows need a GPU, a compiler or a longer context; a sweep of nothing else is a mistake.
    assert any(trial.infeasible is None for trial in plan.trials)


def test_the_quant_sweep(planned: Callable[..., Plan]) -> None:
    plan = planned("+sweep=quant model=random_tiny")
    assert plan.axes["quant"] == ("fp32", "bf16", "int8", "nf4")
    assert len(plan.axes["task.prompt_tokens"]) == 2
    assert "512" in plan.axes["task.prompt_tokens"]
    assert len(plan.trials) == 8
    assert plan.baseline == {"quant": "fp32"}
    for trial in plan.trials:
        assert trial.identity["task"]["name"] == "inference"
        assert trial.identity["task"]["quality_tokens"] > 0
        assert trial.identity["protocol"]["max_time_s"] == 8.0


def test_the_table_of_the_seed(planned: Callable[..., Plan]) -> None:
    plan = planned("+sweep=quant_seed model=random_tiny")
    assert plan.axes["task.prompt_tokens"] == ("512", "1024", "1536")
    for trial in plan.trials:
        protocol = trial.identity["protocol"]
        assert (protocol["min_repetitions"], protocol["max_repetitions"]) == (10, 10)
        assert trial.identity["task"]["new_tokens"] == 128


@pytest.mark.parametrize(
    ("group", "warmup", "least", "most", "seconds", "width"),
    [
        ("quick", 1, 5, 10, 8.0, 0.05),
        ("standard", 2, 10, 50, 60.0, 0.02),
        ("strict", 5, 20, 200, 300.0, 0.01),
    ],
)
def test_protocols_are_what_the_specification_says(
    planned: Callable[..., Plan], group: str, warmup: int, least: int, most: int,
    seconds: float, width: float,
) -> None:  # fmt: skip
    (trial,) = planned(f"task=noop model=random_tiny protocol={group}").trials
    assert trial.identity["protocol"] == {
        "warmup": warmup,
        "min_repetitions": least,
        "max_repetitions": most,
        "max_time_s": seconds,
        "ci_relative_half_width": width,
        "confidence": 0.95,
        "resamples": 10000,
    }


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"quant": "nf4", "protocol": "strict"},
        {"model": "random", "device": "cpu", "tracking": "server"},
        {"model": "gguf", "cluster": "ray", "telemetry": "off", "verdict": "off"},
    ],
)
def test_cheap_composition_is_what_hydra_composes(choices: dict[str, str]) -> None:
    ours = OmegaConf.to_container(Composer().compose({"task": "noop", **choices}))
    assert isinstance(ours, dict)
    # Hydra alone does not know how tasks and engines are typed.
    for group in PLUGGED_IN:
        ours.pop(group)
    words = [f"{group}={option}" for group, option in choices.items()]
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        hydras = OmegaConf.to_container(compose("config", ["task=noop", *words]))
    assert isinstance(hydras, dict)
    for group in PLUGGED_IN:
        hydras.pop(group)
    assert ours == hydras
    assert list(ours) == list(hydras)


def test_composing_again_gives_the_same(planned: Callable[..., Plan]) -> None:
    composer = Composer()
    first = OmegaConf.to_yaml(composer.compose({"task": "noop", "model": "random"}))
    composer.compose({"task": "noop", "model": "random_tiny", "quant": "nf4"})
    assert OmegaConf.to_yaml(composer.compose({"task": "noop", "model": "random"})) == first


def test_defaults_of_files_and_dataclasses_agree() -> None:
    settings = settings_of([])
    rules = settings.verdict.rules
    assert rules
    assert settings.isolate == Settings().isolate
    assert settings.cluster == Settings().cluster
    assert settings.tracking == Settings().tracking
    assert settings.telemetry == Settings().telemetry
    assert settings.timeout_s == Trial("h", {}).timeout_s


def test_a_verdict_turned_off_refuses_nothing_and_still_looks() -> None:
    rules = settings_of(["verdict=off"]).verdict.rules
    default = settings_of([]).verdict.rules
    assert {name: rule["limit"] for name, rule in rules.items()} == {
        name: rule["limit"] for name, rule in default.items()
    }
    assert {rule["state"] for rule in rules.values()} == {"flagged"}


def test_settings_of_a_command_line(write: Any) -> None:
    own = write("tracking/team.yaml", "kind: server\nuri: http://tracking:5000\n")
    settings = settings_of(["tracking=team", "repeats=4"], config_dirs=[own])
    assert (settings.tracking.kind, settings.tracking.uri) == ("server", "http://tracking:5000")
    assert settings.repeats == 4


def test_a_task_file_is_typed_without_ceremony(planned: Callable[..., Plan], write: Any) -> None:
    own = write("task/slow.yaml", "name: noop\nsleep_s: 2\n")
    (trial,) = planned("task=slow model=random_tiny task.value='3'", own).trials
    assert trial.identity["task"]["sleep_s"] == 2.0
    assert trial.identity["task"]["value"] == 3


def test_a_task_file_inherits_another(planned: Callable[..., Plan], write: Any) -> None:
    write("task/slow.yaml", "name: noop\nsleep_s: 2\nvalue: 1\n")
    own = write("task/slower.yaml", "defaults: [slow, _self_]\nsleep_s: 9\n")
    (trial,) = planned("task=slower model=random_tiny", own).trials
    assert (trial.identity["task"]["sleep_s"], trial.identity["task"]["value"]) == (9.0, 1)


THIRD_PARTY = """\
from dataclasses import dataclass, field

from orchestrator.measure import Infeasible, Task


@dataclass
class Options:
    name: str = "NAME"
    size: int = 8
    mode: str = field(default="fast", metadata={"choices": ("fast", "exact")})


def check(identity):
    if identity["task"]["size"] > 100:
        raise Infeasible("too large", where="task.size")
    if identity["task"]["size"] > 50:
        raise RuntimeError("oops")
    return "odd" if identity["task"]["size"] % 2 else None


TASK = Task(name="NAME", config=Options, run=lambda identity, recorder: None, check=check)
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A task that an installed distribution brings by its entry point."""
    name = f"third_party_{tmp_path.name.replace('-', '_')}"
    site = tmp_path / "site"
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[orchestrator.tasks]\n{name} = {name}:TASK\n")
    (site / f"{name}.py").write_text(THIRD_PARTY.replace("NAME", name))
    monkeypatch.syspath_prepend(str(site))
    return name


def test_a_third_party_task_needs_no_file(
    planned: Callable[..., Plan], third_party: str, refused: Callable[..., str]
) -> None:
    plan = planned(f"task={third_party} model=random_tiny task.size=2,3,51,101 task.mode=exact")
    assert plan.trials[0].identity["task"] == {"name": third_party, "size": 2, "mode": "exact"}
    assert [trial.infeasible for trial in plan.trials] == [
        None,
        "odd",
        "the task's own check failed: RuntimeError: oops",
        "task.size: too large",
    ]
    assert third_party in Composer().options("task")
    assert "'slow' is not one of fast, exact" in refused(f"task={third_party} task.mode=slow")


def test_a_third_party_task_brings_files_of_its_own(
    planned: Callable[..., Plan], third_party: str, write: Any
) -> None:
    own = write(f"task/{third_party}.yaml", "size: 4\n")
    (trial,) = planned(f"task={third_party} model=random_tiny", own).trials
    assert trial.identity["task"] == {"name": third_party, "size": 4, "mode": "fast"}


def test_a_task_that_cannot_be_imported(refused: Callable[..., str], third_party: str) -> None:
    module = Path(next(p for p in sys.path if p.endswith("site") and third_party[-5:] in p))
    (module / f"{third_party}.py").write_text("import nosuchmodule\n")
    assert "cannot be imported" in refused(f"task={third_party}")


def test_tasks_of_one_sweep(planned: Callable[..., Plan]) -> None:
    plan = planned("task=noop,inference model=random_tiny seed=1,2")
    names = [trial.identity["task"]["name"] for trial in plan.trials]
    assert names == ["noop", "noop", "inference", "inference"]
    assert [trial.resources.cpus for trial in plan.trials] == [1, 1, None, None]


def test_a_root_file_of_ones_own(write: Any) -> None:
    own = write(
        "mine.yaml",
        "defaults:\n  - config\n  - override task: noop\n  - override model: random_tiny\n"
        "  - _self_\nseed: 7\n",
    )
    plan = build(
        ["quant=nf4,bf16"], config_dirs=[own], config_name="mine", device_kind=lambda c: "cpu"
    )
    assert [trial.identity["seed"] for trial in plan.trials] == [7, 7]
    assert [trial.identity["quant"]["scheme"] for trial in plan.trials] == ["nf4", "none"]


def test_directories_by_hydra_searchpath(write: Any) -> None:
    own = write("quant/mine.yaml", "scheme: fp4\n")
    words = ["task=noop", "model=random_tiny", "quant=mine", f"hydra.searchpath=[file://{own}]"]
    (trial,) = build(words, device_kind=lambda cluster: "cpu").trials
    assert trial.identity["quant"]["scheme"] == "fp4"


def test_a_relative_model_path_is_made_absolute(
    planned: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (trial,) = planned("task=noop model=path model.path=weights").trials
    assert trial.identity["model"]["path"] == str(tmp_path / "weights")
