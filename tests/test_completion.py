"""Completion: which words are offered, and that real shells offer them after one command."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.commands.completion.candidates import candidates
from orchestrator.commands.completion.install import SHELLS, script
from orchestrator.commands.parser import commands, main

pytestmark = pytest.mark.xdist_group("recorded")

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("orchestrator sho", "show"),
        ("python -m orchestrator rep", "report reproduce repeats="),
        (".venv/bin/python3.12 -m orchestrator plan protocol=st", "protocol=standard strict"),
        ("orchestrator quant=nf", "quant=nf4"),
        ("orchestrator model=known/gp", "model=known/gpt2 model=known/gpt_oss_20b"),
        ("orchestrator model/", ""),
        ("orchestrator run --str", "--strict"),
        ("orchestrator plan --str", ""),
        ("orchestrator quant=bf16,n", "quant=bf16,nf4"),
        ("orchestrator quant=fp32,nf4 task=noop task.val", "task.value="),
        ("orchestrator +sweep=qu", "+sweep=quant +sweep=quant_seed"),
        ("orchestrator --cfg ", "all hydra job"),
        ("orchestrator plan --j", "--json"),
        ("orchestrator compare --all", "--allow-different"),
        ("orchestrator bisect abc --good openv", "openvino"),
        ("orchestrator gate --rules ll", "llm_baseline"),
        ("orchestrator report adh", "adhoc"),
        ("orchestrator compare adhoc adhoc@", "adhoc@-1 adhoc@-2"),
        ("orchestrator status tracking.ro", "tracking.root="),
        ("orchestrator completion z", "zsh"),
        ("orchestrator cancel ", ""),
        ("orchestrator report --output ", ""),
        ("orchestrator nonsense=1 task.", ""),
        ("orchestrator quant='a ", ""),
        ("orchestrator show abc tracking.root=/no/such/place ", "tracking. tracking="),
        ("orchestrator reproduce abc tracking.root=/no/such/place rep", "repeats="),
    ],
)
def test_what_is_offered(
    line: str, wanted: str, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recorded)
    found = candidates(line, commands)
    short = [word.replace("protocol=", "") for word in found]
    assert short == [word.replace("protocol=", "") for word in wanted.split()]


def test_hashes_are_offered_as_short_as_they_are_shown(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recorded)
    found = candidates("orchestrator show ", commands)
    assert len(found) == 2
    assert {len(word) for word in found} == {12}
    assert candidates(f"orchestrator reproduce {found[0][:3]}", commands) == found[:1]


def test_it_offers_every_command_and_no_group_that_is_not_chosen() -> None:
    found = candidates("python -m orchestrator ", commands)
    assert set(commands.commands) <= set(found)
    assert "+sweep=" in found
    assert not [word for word in found if word.startswith(("hydra", "gate=", "hardware"))]


@pytest.mark.parametrize("shell", SHELLS)
def test_installed_twice_it_is_sourced_once(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'")  # no line break at its end
    assert main(["completion", shell, "--install"]) == 0
    assert main(["completion", shell, "--install"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert paths[0].read_text() == script(shell)
    if shell == "bash":
        lines = (tmp_path / ".bashrc").read_text().splitlines()
        assert lines == ["alias ll='ls -l'", f"source {paths[0]}"]


def test_a_home_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    assert main(["completion", "bash", "--install"]) == 2
    assert "Put what `completion bash` prints where bash reads it" in capsys.readouterr().err


def test_another_use_of_python_keeps_its_own_completion(tmp_path: Path) -> None:
    (tmp_path / "ours.bash").write_text(script("bash"))
    asked = """
        _before() { COMPREPLY=(before); }
        complete -F _before python
        source ours.bash; source ours.bash
        COMP_LINE="python scr" COMP_POINT=10 COMP_WORDS=(python scr) COMP_CWORD=1
        _orchestrator_complete
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", asked], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() == "before", done.stderr


@pytest.mark.parametrize(
    ("shell", "command"),
    [("bash", "bash --noprofile -i"), ("zsh", "zsh -i"), ("fish", "fish -i")],
)
def test_a_real_shell_completes(tmux, shell: str, command: str, recorded: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Install, open a terminal, type half a word, press Tab."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    unset = [f"-u {name}" for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR")]
    home = f"env {' '.join(unset)} HOME={tmp_path} PYTHONPATH={ROOT}"
    install = f"{home} {sys.executable} -m orchestrator completion {shell} --install"
    subprocess.run(install, shell=True, check=True, capture_output=True, timeout=60)
    tmux.open(f"{home} {command}", width=240, height=20, where=recorded)
    lines = [
        (f"{sys.executable} -m orchestrator plan quant=fp32,nf", "quant=fp32,nf4"),
        (f"{sys.executable} -m orchestrator report adh", "report adhoc"),
    ]
    # Starting zsh or fish costs seconds, each line too: what is ours is the same in all three.
    for typed, completed in lines if shell == "bash" else lines[:1]:
        tmux("send-keys", "C-u", typed)
        tmux.wait_for(typed[-12:])
        # A key pressed before the shell has read its start-up files completes nothing.
        deadline = time.monotonic() + 60
        while completed not in "".join(tmux.lines()):
            assert time.monotonic() < deadline, tmux.lines()
            tmux("send-keys", "Tab")
            time.sleep(1.0)
