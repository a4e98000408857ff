"""Every command in README and docs runs, or at least means something; every link leads somewhere.

A fenced ``bash`` or ``console`` block is taken line by line (``console``: those after ``$``)::

    run, plan            planned as written, never started
    show, compare, gate  executed on one small store that is measured first
    ui, cancel, sync     parsed by the command line
    make TARGET          the Makefile has it
    anything else        only under a marker: <!-- run by: TEST FILE -->, <!-- not run: reason -->

A block after ``<!-- file: NAME -->`` is written to the reader's directory first, so that commands
find it. Hashes and paths of the documents stand for those of the store here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from testing.commands import orchestrator
from testing.near import near

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Executed by a test of its own, from outside the repository.
THIRD_PARTIES = {
    "tasks": (ROOT / "docs" / "write-a-task.md", "embedding_task.py", 4),
    "engines": (ROOT / "docs" / "write-an-engine.md", "bigram_engine.py", 2),
}
EXECUTED_APART = [page for page, _, _ in THIRD_PARTIES.values()]
STORED = ("show", "compare", "gate", "history", "report", "status", "doctor")
PARSED = ("ui", "cancel", "sync", "reproduce", "bisect", "completion")
ORCHESTRATOR = re.compile(r"(?:\S*python3? -m orchestrator|orchestrator)\b")
FENCE = re.compile(
    r"(?:<!-- (?P<mark>not run|run by|file): (?P<what>[^>]+) -->\n+)?"
    r"^```(?P<kind>[a-z]+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Command:
    """One command line of a document."""

    document: str
    line: str


def blocks(document: Path) -> list[re.Match[str]]:
    return list(FENCE.finditer(document.read_text(encoding="utf-8")))


def commands(documents: Sequence[Path]) -> list[Command]:
    """Every command that is not marked, once."""
    found = []
    for document in documents:
        for block in blocks(document):
            if block["kind"] not in ("bash", "console") or block["mark"] in ("not run", "run by"):
                continue
            text = block["text"].replace("\\\n", " ")
            for line in text.splitlines():
                if block["kind"] == "console":
                    if not line.startswith("$ "):
                        continue
                    line = line[2:]
                if shlex.split(line, comments=True):
                    found.append(Command(document.name, line.strip()))
    return list(dict.fromkeys(found))


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's directory: the files the documents give, two models, a store with two runs."""
    place = tmp_path_factory.mktemp("reader")
    for document in DOCUMENTS:
        for block in blocks(document):
            if block["mark"] == "file" and document not in EXECUTED_APART:
                target = place / block["what"].strip()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block["text"], encoding="utf-8")
    model(place)
    with near():
        for more in ((), ("force=true",)):
            words = ("task=noop", "task.value=1,2,3", "device=cpu", "verdict=off")
            done = orchestrator(place, *words, *more)
            assert done.code == 0, done.err
    return place


def model(place: Path) -> None:
    """A directory and a file that look like models as far as planning looks."""
    import struct

    directory = place / "my-llama"
    directory.mkdir()
    config = {"model_type": "llama", "hidden_size": 8, "max_position_embeddings": 4096}
    (directory / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(4)
    (directory / "model.safetensors").write_bytes(data)
    (place / "my-llama.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))


@pytest.fixture(scope="session")
def hashes(reader: Path) -> list[str]:
    from orchestrator.plan.schema import TrackingConfig
    from orchestrator.record import open_store

    return sorted(open_store(TrackingConfig(root=str(reader / "mlruns"))).attempts())


def words_of(command: Command, reader: Path, hashes: list[str]) -> list[str]:
    """The command's words, the document's hashes and paths replaced by what is here."""
    words = []
    for word in shlex.split(command.line, comments=True):
        word = word.replace("/models/", f"{reader}/")
        if word == "HASH" or re.fullmatch(r"[0-9a-f]{12}", word):
            # Two different hashes in one command stay two.
            word = hashes[sum(re.fullmatch(r"[0-9a-f]{64}", w) is not None for w in words)]
        words.append(re.sub(r"^quant(?=$|@)", "adhoc", word))
    return words


@pytest.mark.parametrize(
    "command",
    commands([document for document in DOCUMENTS if document not in EXECUTED_APART]),
    ids=lambda c: f"{c.document}: {c.line[:70]}",
)
def test_command(
    command: Command,
    reader: Path,
    hashes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from orchestrator.commands.parser import commands as known
    from orchestrator.commands.parser import main
    from orchestrator.plan.expand import build
    from orchestrator.plan.hydra_cli import hydra_flags, parse_run_args

    if command.line.startswith("make "):
        target = shlex.split(command.line, comments=True)[1]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    match = ORCHESTRATOR.match(command.line)
    assert match, "only orchestrator and make are tested: mark the block <!-- not run: reason -->"
    monkeypatch.chdir(reader)
    words = words_of(Command(command.document, command.line[match.end() :]), reader, hashes)
    name = words[0] if words and words[0] in known.commands else "run"
    if name in STORED:
        code = main(words)
        out, err = capsys.readouterr()
        assert "error:" not in err
        assert code in ((0, 1, 2, 3) if name == "gate" else (0,))
        assert out
    elif name in PARSED:
        known.commands[name].make_context(name, words[1:])
    else:
        rest = words[1:] if words and words[0] == name else words
        if hydra_flags(rest) is not None:
            return
        arguments = parse_run_args(rest)
        plan = build(
            arguments.overrides,
            config_dirs=arguments.config_dirs,
            config_name=arguments.config_name,
            device_kind=lambda cluster: "cpu",
        )
        assert plan.trials


def test_every_exemption_has_a_reason() -> None:
    for document in DOCUMENTS:
        for block in blocks(document):
            if block["mark"] == "not run":
                assert len(block["what"].split()) >= 2, f"{document.name}: {block['text']}"


def test_what_another_test_runs_is_read_by_it() -> None:
    for document in DOCUMENTS:
        for block in blocks(document):
            if block["mark"] == "run by":
                text = (ROOT / block["what"].strip()).read_text(encoding="utf-8")
                assert f'"{document.name}"' in text, f"{document.name}: {block['text']}"


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
            if "://" in link:
                continue
            file, _, anchor = link.partition("#")
            target = (document.parent / file).resolve() if file else document
            assert target.exists(), f"{document.name}: {link}"
            if anchor:
                assert anchor in anchors(target), f"{document.name}: {link}"


def anchors(document: Path) -> set[str]:
    """Of each heading, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("kind", THIRD_PARTIES)
def test_third_party(tmp_path: Path, kind: str) -> None:
    """A page's own task or engine, found through its entry point from outside the repository."""
    page, module, trials = THIRD_PARTIES[kind]
    files = {
        block["what"].strip(): block["text"] for block in blocks(page) if block["mark"] == "file"
    }
    for name, text in files.items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    assert len(files[module].splitlines()) <= 100
    project = files["pyproject.toml"]
    entry = re.search(
        rf'\[project\.entry-points\."orchestrator\.{kind}"\]\n(\w+) = "(.+)"', project
    )
    assert entry, f"pyproject.toml declares nothing for orchestrator.{kind}"
    # What an installer would leave behind.
    installed = tmp_path / "third_party-0.1.dist-info"
    installed.mkdir()
    (installed / "entry_points.txt").write_text(f"[orchestrator.{kind}]\n{entry[1]} = {entry[2]}\n")
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1\n")
    (command,) = commands([page])
    words = shlex.split(command.line)[3:]
    # Seconds instead of a minute on a busy machine: fewer repetitions, no cool-down.
    quick = ("protocol.max_time_s=0.1", "verdict=off", "ceilings=off", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words, *quick],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcomes"] == {"ok": trials}


def findings_that_ask_for_something() -> list[list[str]]:
    """Of every finding doctor can give that is not ok: the fixed parts of what it says."""
    import ast

    found = []
    for name in ("doctor.py", "findings.py"):
        tree = ast.parse((ROOT / "orchestrator" / "commands" / name).read_text(encoding="utf-8"))
        for call in ast.walk(tree):
            named = isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Finding"
            if not named or (isinstance(call.args[0], ast.Constant) and call.args[0].value == "ok"):
                continue
            what = call.args[1]
            parts = what.values if isinstance(what, ast.JoinedStr) else [what]
            fixed = [str(p.value).strip(" :()") for p in parts if isinstance(p, ast.Constant)]
            found.append([part for part in fixed if len(part) > 2])
    return found


def test_troubleshooting_has_a_line_for_all_that_doctor_says() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    said = findings_that_ask_for_something()
    assert len(said) > 12
    missing = [parts for parts in said if not any(all(p in row for p in parts) for row in rows)]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```bash\npip install something\n```\n", "pip install something"),
        ("Then\n\n```console\n$ rm -rf build\nok\n```\n", "rm -rf build"),
        ("<!-- not run: starts a server -->\n```bash\nmlflow server\n```\n", None),
    ],
)
def test_a_block_without_a_mark_is_caught(text: str, said: str | None, tmp_path: Path) -> None:
    """What this file rests on: a fresh page with a command of another program does not pass."""
    page = tmp_path / "fresh.md"
    page.write_text(text, encoding="utf-8")
    found = commands([page])
    assert [command.line for command in found] == ([said] if said else [])
    assert not any(ORCHESTRATOR.match(c.line) or c.line.startswith("make ") for c in found)


def test_every_page_is_read_here_and_named_in_the_site() -> None:
    """Pages are found by looking, so that a new one cannot be forgotten."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = sorted((ROOT / "docs").rglob("*.md"))
    assert set(pages) <= set(DOCUMENTS)
    for page in pages:
        assert f"- {page.relative_to(ROOT / 'docs')}\n" in nav, page
