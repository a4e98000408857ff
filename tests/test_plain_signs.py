"""A terminal that cannot write our signs gets plain ones: ``PYTHONIOENCODING=ascii``."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.commands.parser import main
from orchestrator.commands.plain_signs import HANDLER, use_plain_signs
from orchestrator.report.show.signs import PLAIN

ROOT = Path(__file__).resolve().parents[1]


def typed(
    monkeypatch: pytest.MonkeyPatch, directory: Path, *words: str, encoding: str = "ascii"
) -> tuple[int, str, str]:
    """A command line of ours whose streams write ``encoding`` only."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(directory)
    code = main(words)
    said = []
    for stream in streams:
        stream.flush()
        said.append(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    monkeypatch.undo()
    return code, said[0], said[1]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_show_and_gate(recorded: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    code, out, err = typed(
        monkeypatch, recorded, "plan", "task=noop", "task.value=1,2", "device=cpu"
    )
    assert code == 0, err
    first, second = re.findall(r"^([0-9a-f]{12}) ", out, re.M)
    code, out, err = typed(monkeypatch, recorded, "show", first, encoding=encoding)
    assert code == 0, err
    assert "configuration" in out
    assert "bug" not in err
    words = ("gate", second, "--baseline", first)
    code, out, err = typed(monkeypatch, recorded, *words, encoding=encoding)
    assert code in (0, 1, 2, 3), err
    assert "Unicode" not in out + err


def test_errors_are_readable(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = typed(monkeypatch, recorded, "show", "ünbekannt…")
    assert code == 2
    assert err.startswith("error: ")
    assert "~" in err, "the ellipsis has a plain sign, the letter has none"


def test_a_run_from_its_first_line_to_its_last(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "plan", "task=noop", "quant=fp32,bf16"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert b"fp32" in done.stdout


def test_every_sign_but_one_has_one_plain_character() -> None:
    longer = {sign for sign, plain in PLAIN.items() if len(plain) != 1}
    assert longer == {"±"}
    assert all(plain.isascii() for plain in PLAIN.values())


@pytest.mark.parametrize(
    ("drawn", "plain"),
    [
        ("39.6 ±0.7      215 ±4      513\n", "39.6 +-0.7     215 +-4     513\n"),
        ("\x1b[2m39.6 ±0.7\x1b[0m  ▲ 0.61×", "\x1b[2m39.6 +-0.7\x1b[0m ^ 0.61x"),
        ("0 <±0.1", "0 <+-0.1"),
        ("median ± half, within ±3 % of it", "median +- half, within +-3 % of it"),
    ],
)
def test_a_number_and_its_interval_stay_in_their_column(drawn: str, plain: str) -> None:
    use_plain_signs()
    assert drawn.encode("ascii", HANDLER).decode() == plain


def test_every_sign_we_print_is_known() -> None:
    """Of string literals in what draws and says: no sign is left to come out as ``?``."""
    printed: set[str] = set()
    for folder in ("report", "commands"):
        for file in (ROOT / "orchestrator" / folder).rglob("*.py"):
            printed |= {sign for sign in file.read_text() if not sign.isascii()}
    assert printed <= set(PLAIN), sorted(printed - set(PLAIN))


def test_streams_that_are_not_files_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    use_plain_signs()
    print("…")
    assert sys.stdout.getvalue() == "…\n"
