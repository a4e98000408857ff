"""Which room may import which (the table of CONTRIBUTING), and that no two files import each other.

Imports inside functions and for type checkers count like any other.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "orchestrator"
# Anyone may ask who we are and where we lie.
FREE = {"__init__"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, tasks among them."""
    found = {}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        relative = path.relative_to(ROOT)
        parts = [part for part in relative.with_suffix("").parts if part != "__init__"]
        if parts[0] == "tasks":
            parts.insert(0, "orchestrator")
        found[".".join(parts)] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """Modules of ours that each module imports, wherever in the file."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                named = [
                    full if (full := f"{node.module}.{alias.name}") in known else node.module
                    for alias in node.names
                ]
            elif isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            found[name] |= {module for module in named if module in known and module != name}
    return found


def outside() -> dict[str, set[str]]:
    """Top-level packages of others that each module imports, and ``ray._private``."""
    found: dict[str, set[str]] = {}
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        found[name] = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE))
        if "ray._private" in text:
            found[name].add("ray._private")
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def allowed() -> dict[str, set[str]]:
    """The table of CONTRIBUTING: a room, and what it may import beside itself."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*)\| [^|]+ \|$", text, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", others)) for name, others in rows}


def test_every_room_stands_in_the_table() -> None:
    rooms = {room(module) for module in modules()} - FREE - {"__main__"}
    assert rooms == set(allowed())


def test_rooms_import_only_what_the_table_allows() -> None:
    table = allowed()
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        if room(module) in table
        for other in sorted(others)
        if room(other) not in {room(module), *FREE, *table[room(module)]}
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_analysed_draws_nothing() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        if module.startswith("orchestrator.report.analyse")
        for other in others
        if other.startswith("orchestrator.report.show")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("package", "folder"),
    [
        ("ray", "orchestrator.schedule.cluster.ray"),
        ("ray._private", "orchestrator.schedule.cluster.ray"),
        ("mlflow", "orchestrator.record"),
    ],
)
def test_a_library_is_imported_in_one_folder(package: str, folder: str) -> None:
    users = {module for module, others in outside().items() if package in others}
    assert users
    assert not {module for module in users if not module.startswith(folder)}


def test_no_files_import_each_other() -> None:
    graph = imports()
    state: dict[str, int] = {}
    circles: list[list[str]] = []

    def follow(module: str, path: list[str]) -> None:
        state[module] = 1
        for other in sorted(graph[module]):
            if state.get(other) == 1:
                circles.append([*path[path.index(other) :], other])
            elif other not in state:
                follow(other, [*path, other])
        state[module] = 2

    for module in graph:
        if module not in state:
            follow(module, [module])
    assert not circles, "\n".join(" -> ".join(circle) for circle in circles)


def test_tests_that_share_a_server_stay_on_one_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions of pytest and pytest-xdist that do not fit scatter a group without a word."""
    for name in ("a", "b"):
        (tmp_path / f"test_{name}.py").write_text(
            "import os, pytest\n"
            "pytestmark = pytest.mark.xdist_group('one')\n"
            f"def test(): open({str(tmp_path / name)!r}, 'w').write(str(os.getpid()))\n"
        )
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    words = ["-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
