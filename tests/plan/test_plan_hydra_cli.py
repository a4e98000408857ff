"""Hydra's own flags, on this configuration and without Hydra's side effects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import ConfigError, UsageError
from orchestrator.plan.hydra_cli import RunArgs, hydra_flags, parse_run_args

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand in an empty directory, and find it empty afterwards."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    assert list(here.iterdir()) == []


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert hydra_flags(argv) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("line", ["", "task=noop", "plan --json seed=1,2", "-m -v", "show -h"])
def test_nothing_happens_without_a_flag(line: str) -> None:
    assert hydra_flags(line.split()) is None


def run_here(*argv: str, cwd: Path | None = None) -> str:
    # In a process of its own: Hydra configures logging for these.
    code = (
        "import sys; from orchestrator.plan.hydra_cli import hydra_flags; hydra_flags(sys.argv[1:])"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        check=True,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
    ).stdout


def test_help_lists_commands_groups_and_tasks() -> None:
    text = run_here("--help")
    for command in ("run", "plan", "show", "reproduce", "compare", "gate", "report", "status"):
        assert f"\n  {command}" in text
    assert "engine: endpoint, llamacpp, onnxruntime, openvino, transformers, vllm\n" in text
    assert "quant: bf16, fp16, fp32, fp4, int4wo, int8, int8wo, mxfp4, nf4, q4_0," in text
    assert "sweep: " in text
    assert "noop" in text
    assert "schema" not in text
    assert "Powered by" not in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from orchestrator.plan.hydra_cli import hydra_flags; hydra_flags(['--help']);"
        "bad = {'torch', 'ray', 'mlflow', 'transformers', 'pandas', 'plotly'} & set(sys.modules);"
        "sys.exit(' '.join(bad) or 0)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
    )


def test_hydra_help_and_info() -> None:
    assert "--config-dir" in run_here("--hydra-help")
    assert "Config search path" in run_here("--info", "searchpath")
    assert "quant/nf4" in run_here("--info", "defaults", "task=noop", "quant=nf4")


def test_cfg_job(capsys: pytest.CaptureFixture[str]) -> None:
    tree = shown(capsys, "--cfg", "job", "task=noop", "quant=nf4", "task.value=3.0")
    assert tree["quant"]["scheme"] == "nf4"
    assert tree["task"]["value"] == 3
    assert "hydra" not in tree


def test_cfg_all_and_hydra(capsys: pytest.CaptureFixture[str]) -> None:
    assert "hydra" in shown(capsys, "task=noop", "--cfg=all")
    assert list(shown(capsys, "--cfg", "hydra", "task=noop")) == ["hydra"]


def test_cfg_shows_what_a_sweep_sets(capsys: pytest.CaptureFixture[str], write: Any) -> None:
    own = write(
        "sweep/mine.yaml",
        "set: {protocol: strict, task.value: 5}\naxes: {quant: 'nf4,fp4'}\nrepeats: 4\n",
    )
    words = ["--cfg", "job", "--config-dir", str(own), "+sweep=mine", "task=noop"]
    tree = shown(capsys, *words)
    assert tree["protocol"]["warmup"] == 5
    assert tree["repeats"] == 4
    assert tree["sweep"]["axes"] == {"quant": "nf4,fp4"}
    assert tree["task"]["value"] == 5
    assert shown(capsys, *words, "quant=fp4")["quant"]["scheme"] == "fp4"


def test_cfg_of_a_package(capsys: pytest.CaptureFixture[str]) -> None:
    tree = shown(capsys, "--cfg", "job", "-p", "protocol", "task=noop", "protocol=strict")
    assert tree["warmup"] == 5


@pytest.mark.parametrize(
    ("argv", "kind", "message"),
    [
        (["--cfg", "job", "quant=bf16,nf4"], ConfigError, "2 configurations"),
        (["--cfg", "job", "quant=nf5"], ConfigError, "Did you mean nf4"),
        (["--cfg", "job", "task=noop", "task.valu=1"], ConfigError, "Did you mean task.value"),
        (["--cfg", "jobs"], UsageError, "invalid choice"),
        (["--cfg"], UsageError, "expected one argument"),
        (["--cfg", "job", "--config-path", "x"], UsageError, "--config-path is not known"),
        (["--cfg", "job", "--nosuch"], UsageError, "--nosuch is not known"),
        (["--cfg", "job", "--help"], UsageError, "at a time"),
        (["--cfg", "job", "-cd", "/nosuch"], ConfigError, "no such directory"),
        (["--cfg", "job", "-cn", "confg"], ConfigError, "Did you mean config"),
        (["-sc", "query=fish2"], ConfigError, "fish2"),
    ],
)
def test_bad_flags(argv: list[str], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        hydra_flags(argv)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("orchestrator quant=nf", "quant=nf4"),
        ("orchestrator task=noop task.val", "task.value="),
        ("orchestrator plan +sweep=qu", "+sweep=quant +sweep=quant_seed"),
        ("python -m orchestrator run protocol=st", "protocol=standard protocol=strict"),
        ("/usr/bin/python3 -m orchestrator task=noo", "task=noop"),
    ],
)
def test_completion(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, wanted: str
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert hydra_flags(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == wanted.split()


def test_completion_is_installed_for_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_flags(["--shell-completion", "install=bash"]) == 0
    assert capsys.readouterr().out.strip().endswith("hydra_bash_completion orchestrator")


@pytest.mark.parametrize(
    ("argv", "args"),
    [
        ([], RunArgs()),
        (["a=1", "--json", "+b=2"], RunArgs(overrides=("a=1", "+b=2"), json=True)),
        (["--strict", "a=1"], RunArgs(overrides=("a=1",), strict=True)),
        (["-m", "a=1,2", "-v"], RunArgs(overrides=("a=1,2",), verbose=True)),
        (["-cd", "x", "a=1", "--config-dir=y"], RunArgs(("a=1",), config_dirs=("x", "y"))),
        (["~a", "--config-name", "mine.yaml"], RunArgs(("~a",), config_name="mine")),
        (["a=-1", "b=[1,-2]"], RunArgs(("a=-1", "b=[1,-2]"))),
    ],
)
def test_run_args(argv: list[str], args: RunArgs) -> None:
    assert parse_run_args(argv) == args


@pytest.mark.parametrize("argv", [["--nosuch"], ["a=1", "-x"], ["--config-dir"]])
def test_run_args_refuse_unknown_flags(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_run_args(argv)


def test_importing_the_room_does_not_import_hydra() -> None:
    code = "import sys, orchestrator.plan.plan; sys.exit('hydra' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(REPOSITORY), "PATH": ""}
    )
