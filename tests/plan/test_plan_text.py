"""Text fields keep their text: on the command line, in axes, in sweep files and in groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConfigError
from orchestrator.plan.axes import Axis, Fixed, parse
from orchestrator.plan.compose import Composer
from orchestrator.plan.expand import build, settings_of
from orchestrator.plan.hydra_cli import hydra_flags
from orchestrator.plan.schema import TrackingConfig
from orchestrator.plan.text_fields import is_text

LOOKS_LIKE_MORE = ["2024_01", "1e-4", "007", "1_000", "true", "False", "nan", "1.50", "-0", "1E5"]
HYDRA_CANNOT = [
    "/tmp/epoch=3",
    "/tmp/模型",
    "/données/modèle",
    "https://host/model?rev=3&x=1",
    "/tmp/a b/c=d",
    "/tmp/run#1",
    "/tmp/a(b)=c",
    "s3://bucket/key=value/date=2024-01-01",
]


def values(line: str) -> tuple[Any, ...]:
    found = parse(line, lambda key: None, "")
    return found.values() if isinstance(found, Axis) else (found.value,)


@pytest.mark.parametrize("text", [*LOOKS_LIKE_MORE, *HYDRA_CANNOT])
def test_on_the_command_line_alone_and_swept(text: str) -> None:
    assert values(f"model.path={text}") == (text,)
    assert values(f"model.path={text},/other") == (text, "/other")
    assert values(f"+model.id={text}") == (text,)


@pytest.mark.parametrize("text", LOOKS_LIKE_MORE)
def test_in_settings_and_identities(text: str) -> None:
    settings = settings_of([f"tracking.root={text}", "cluster=ray", f"cluster.address={text}"])
    assert settings.tracking.root == text
    assert settings.cluster.address == text
    plan = build(
        ["task=noop", "model=hub", "model.id=own/name", f"model.revision={text},main"],
        device_kind=lambda _: "cpu",
    )
    seen = [trial.identity["model"] for trial in plan.trials]
    assert [model["revision"] for model in seen] == [text, "main"]


def test_what_is_no_text_is_read_as_before() -> None:
    assert values("seed=1_0") == (10,)
    assert values("protocol.max_time_s=1e1") == (10.0,)
    assert values("model.trust_remote_code=true") == (True,)
    assert values("model.path=null") == (None,)
    assert values("model.path='a,b'") == ("a,b",)
    assert values("task.prompt_tokens=12,24") == (12, 24)


def test_what_cannot_be_read_says_the_spelling_that_works() -> None:
    with pytest.raises(ConfigError) as refused:
        parse("+model.architecture.note=a=b", lambda key: None, "")
    assert """Quote the value: '+model.architecture.note="a=b"'""" in str(refused.value)
    assert values('+model.architecture.note="a=b"') == ("a=b",)


def test_names_of_options_are_text(tmp_path: Path) -> None:
    found = parse("sweep=2024_01", lambda key: ["2024_01"], "")
    assert found == Fixed("sweep", "2024_01")


def test_in_files(tmp_path: Path) -> None:
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "dated.yaml").write_text("kind: embedded\nroot: 2024_01\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "dated.yaml").write_text("source: hub\nid: 1e-4\nrevision: off\n")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "dates.yaml").write_text(
        "set:\n  task: noop\n  model: hub\n  model.id: 2024_02\n"
        "axes:\n  model.revision: [1e-4, 2024_01, 0x10, yes, 'quoted']\n"
        "exclude:\n  - {model.revision: 2024_01}\n"
    )
    places = [str(tmp_path)]
    settings = settings_of(["tracking=dated"], config_dirs=places)
    assert settings.tracking.root == "2024_01"
    plan = build(["task=noop", "model=dated"], config_dirs=places, device_kind=lambda _: "cpu")
    (trial,) = plan.trials
    assert (trial.identity["model"]["id"], trial.identity["model"]["revision"]) == ("1e-4", "off")
    plan = build(["+sweep=dates"], config_dirs=places, device_kind=lambda _: "cpu")
    seen = [t.identity["model"]["revision"] for t in plan.trials]
    assert seen == ["1e-4", "0x10", "yes", "quoted"]
    assert {t.identity["model"]["id"] for t in plan.trials} == {"2024_02"}
    (tmp_path / "sweep" / "inside.yaml").write_text(
        "set:\n  task: noop\n  environment: pinned\n  environment.pins: {numpy: 2.10}\n"
    )
    tree = Composer(places).compose_sweep("inside").sweep
    assert tree["set"]["environment.pins"] == {"numpy": "2.10"}


def test_hydra_s_own_view_reads_them_back(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=noop", "model=hub", "model.id=1e-4", "model.revision=a=b", "--cfg", "job"]
    assert hydra_flags(words) == 0
    shown = capsys.readouterr().out
    assert "revision: a=b" in shown
    assert "id: 1e-4" in shown or "id: '1e-4'" in shown


def test_the_schema_says_what_is_text() -> None:
    text = ("tracking.root", "model.path", "model.revision", "sweep.name", "cluster.address")
    assert all(map(is_text, text))
    other = ("seed", "model.trust_remote_code", "model.architecture", "device.threads", "nothing.x")
    assert not any(map(is_text, other))


def test_a_mapping_is_added_where_no_key_was() -> None:
    scaling = "{rope_type:yarn,factor:4.0,original_max_position_embeddings:2048}"
    line = ["task=inference", "model=random", "quant=fp32", "task.prompt_tokens=8000"]
    line += ["model.architecture.max_position_embeddings=2048"]
    added = [f"+model.architecture.rope_scaling={scaling}"]
    (trial,) = build([*line, *added], device_kind=lambda _: "cpu").trials
    assert trial.infeasible is None, "the scaled length counts"
    rope = trial.identity["model"]["architecture"]["rope_scaling"]
    assert rope == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 2048,
    }
    (longer,) = build([*line, *added, "task.new_tokens=500"], device_kind=lambda _: "cpu").trials
    assert "the model's context of 8192" in (longer.infeasible or "")
    (unscaled,) = build(line, device_kind=lambda _: "cpu").trials
    assert "the model's context of 2048" in (unscaled.infeasible or "")


@pytest.mark.parametrize(
    ("tracking", "place"),
    [
        (TrackingConfig(), ""),
        (TrackingConfig(root="/data/my runs"), " tracking.root='/data/my runs'"),
        (
            TrackingConfig(kind="server", uri="http://host:5000"),
            " tracking=server tracking.uri=http://host:5000",
        ),
        (
            TrackingConfig(kind="server", uri="http://me:word@host:5000"),
            " tracking=server tracking.uri=URI",
        ),
    ],
)
def test_a_hint_reads_from_where_the_results_are(tracking: TrackingConfig, place: str) -> None:
    assert tracking.command("ui") == f"python -m orchestrator ui{place}"
