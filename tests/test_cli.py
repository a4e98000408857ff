"""The command line: what is a command, how errors read, and what is not imported for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.commands.findings import examine
from orchestrator.commands.parser import commands, main

pytestmark = pytest.mark.xdist_group("recorded")

HEAVY = ("torch", "transformers", "ray", "mlflow", "pandas", "plotly", "pyarrow", "numpy")


def run(directory: Path, *words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    arguments = ["-c", code] if code else ["-m", "orchestrator", *words]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "100"},
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["repot"], "Did you mean report?"),
        (["Plan", "task=noop"], "no command 'Plan'. Did you mean plan?"),
        (["./plan"], "no command './plan'. Did you mean plan?"),
        ([""], "a word is empty"),
        (["plan", ""], "a word is empty"),
        (["plan", "task=noop", "--strict"], "--strict: has no effect on plan"),
        (["+sweep=capacity", "--strict"], "--strict: has no effect on a search"),
        (["--cfg", "job", "--json"], "--json: has no effect on --cfg"),
        (["--cfg", "job", "--package", "nope"], "--package: nothing is at nope"),
        (["--info", "config", "--resolve"], "--resolve: needs --cfg"),
        (["--config-name", "nope"], "no such root file: nope. Known: config"),
        (["report", "x", "--json", "--output", "y"], "--output: has no effect on --json"),
        (["task=noop,estimate", "model=known/llama_7b", "device=cpu", "--json"], "are two runs"),
        (["plan", "model=hub", "model.id=a/b/c"], "'a/b/c' is no id of the hub"),
        (["quant=nf5"], "Did you mean nf4?"),
        (["+sweep=quantt"], "Did you mean quant"),
        (["task.promt_tokens=5"], "task.prompt_tokens"),
        (["task.prompt_tokens=abc"], "'abc' is not an int"),
        (["model=path", "model.path=/no/such/place"], "/no/such/place"),
        (["--nonsense"], "unknown flag --nonsense"),
        (["show"], "show: missing argument 'HASH'"),
        (["gate"], "gate: missing option '--baseline'"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (["ui", "--port", "99999"], "99999 is not in the range"),
        (["show", "a" * 12, "quant=nf4"], "quant is part of the trial"),
        (["reproduce", "a" * 12, "task.value=1,2"], "task.value is part of the trial"),
        (["report", "adhoc", "slo.ttft_s=1"], "slo.ttft_s: has no effect on what is recorded"),
        (["gate", "--baseline", "x", "repeats=5"], "repeats: has no effect on what is recorded"),
        (["reproduce", "a" * 12, "search=capacity"], "search: has no effect on reproduce"),
        (["reproduce", "a" * 12, "force=false"], "force: has no effect on reproduce"),
        (
            ["bisect", "a" * 12, "--good=x", "--bad=y", "repeats=3"],
            "repeats: has no effect on bisect",
        ),
        (["ui", "repeats=3"], "repeats: has no effect on ui"),
        (["doctor", "cluster=ray", "cluster.address=auto"], "cluster: has no effect on doctor"),
        (["doctor", "verdict=off"], "verdict: has no effect on doctor"),
        (["status", "+sweep=quant"], "+sweep=quant is part of the trial"),
        (["plan", "+sweep=quant", "+sweep=training"], "quant and training are two sweeps"),
        (["plan", "timeout_s=0"], "timeout_s: 0.0 is less than 0.1"),
        (["show", "zz"], "'zz' is no config hash"),
        (["show", "a" * 12], "no attempt of aaaaaaaaaaaa is recorded"),
        (["compare", "nothing", "there"], "'nothing' is no sweep"),
        (["gate", "--baseline", "x", "--rules", "nope"], "no gate rules 'nope'"),
        (["report", "nothing"], "no sweep 'nothing' is recorded"),
        (["cancel", "nothing"], "no running sweep is called 'nothing'"),
        (["task=noop", "tracking=server", "tracking.uri=ftp://x"], "tracking.uri"),
        (["task=noop", "verdict.rules.steal=0.1"], "verdict.rules.steal: a rule needs a state"),
        (["plan", "task=noop", "+verdict.rules.stale.limit=1"], "unknown verdict rule 'stale'"),
        (["task=noop", "verdict.rules.steal.limit=much"], "verdict.rules.steal.limit: 'much'"),
    ],
)
def test_a_mistake_is_one_clear_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == (4 if words[0] in ("gate", "bisect") else 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "adhoc", "adhoc"], "adhoc and adhoc are the same attempts"),
        (["gate", "adhoc", "--baseline", "adhoc"], "are the same attempts"),
        (["compare", "adhoc", "A"], "share 1 attempt"),
        (["compare", "adhoc", "adhoc@-5"], "sweep 'adhoc' has 1 run, not 5"),
        (["report", "adhocc"], "Known sweeps: adhoc"),
        (["report", "adhoc", "--output", "/proc/nowhere"], "/proc/nowhere cannot be written"),
        (["compare", "A", "B", "--metric", "valu"], "Did you mean value?"),
        (["gate", "A", "--baseline", "B", "--junit", "/proc/x"], "/proc/x cannot be written"),
    ],
)
def test_a_mistake_about_what_is_recorded_is_one_clear_line(
    words: list[str],
    said: str,
    recorded: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from orchestrator.commands.completion.candidates import candidates

    monkeypatch.chdir(recorded)
    a, b = candidates("orchestrator show ", commands)
    code = main([{"A": a, "B": b}.get(word, word) for word in words])
    assert code == (4 if words[0] == "gate" else 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_a_bug_in_gate_is_no_judgement(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recorded)
    monkeypatch.setattr("orchestrator.commands.gate.select", lambda *_: 1 // 0)
    assert main(["gate", "adhoc", "--baseline", "adhoc@-1"]) == 4
    assert capsys.readouterr().err.startswith("error: ZeroDivisionError")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["show", "--help"],
        ["plan", "task=noop"],
        ["completion", "bash", "--line", "orchestrator quant=bf16,n"],
    ],
)
def test_nothing_heavy_is_imported_that_a_command_does_not_need(
    words: list[str], tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "from orchestrator.commands.parser import main\n"
        f"code = main({words!r})\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules], code)\n"
    )
    done = run(tmp_path, code=code)
    assert "HEAVY [] 0" in done.stdout, done.stdout + done.stderr


def test_show_wakes_no_library_of_the_measured(recorded: Path) -> None:
    code = (
        "import sys\n"
        "from orchestrator.commands.parser import commands, main\n"
        "from orchestrator.commands.completion.candidates import candidates\n"
        "code = main(['show', candidates('orchestrator show ', commands)[0]])\n"
        "heavy = ('torch', 'transformers', 'ray', 'mlflow', 'pandas', 'plotly')\n"
        "print('HEAVY', [name for name in heavy if name in sys.modules], code)\n"
    )
    done = run(recorded, code=code)
    assert "HEAVY [] 0" in done.stdout, done.stdout + done.stderr


def test_plan_prints_json_and_touches_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "plan", "+sweep=quant", "--json")
    trials = json.loads(done.stdout)["trials"]
    assert [trial["state"] for trial in trials] == ["new"] * len(trials)
    assert len({trial["hash"] for trial in trials}) == len(trials) >= 8
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m orchestrator plan +sweep=quant quant=fp32 --json | head -c 1",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""


def test_doctor_finds_no_failure_where_the_tests_run(tmp_path: Path) -> None:
    findings = examine(tmp_path / "mlruns")
    assert not [finding for finding in findings if finding.level == "fail"]
    assert {finding.level for finding in findings} <= {"ok", "warn"}


def test_doctor_knows_that_a_store_can_be_made(tmp_path: Path) -> None:
    place = tmp_path / "not" / "there"
    (said,) = [f for f in examine(place / "store") if str(tmp_path) in f.what]
    assert (said.level, "free" in said.what) == ("ok", True)


def test_doctor_says_what_cannot_be_written() -> None:
    findings = examine(Path("/proc/nowhere/mlruns"))
    assert any("/proc/nowhere" in finding.what for finding in findings if finding.level == "fail")
