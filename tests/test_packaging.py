"""The installed program: what the wheel holds, and that nobody's ``tasks`` gets in its way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLAN = ["-m", "orchestrator", "plan", "task=noop", "task.value=1", "device=cpu", "--json"]
# Loaded once each, whatever else is called ``tasks``.
LOADED = """
import sys, tasks
from orchestrator.measure.registry import find_task
assert find_task("noop").run.__module__ == "orchestrator.tasks.noop"
assert tasks.OWNER == "somebody else"
assert not [name for name in sys.modules if name.startswith("tasks.")]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, as an installer unpacks it."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = place.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(place / "site")
    return place / "site"


def somebody_else(directory: Path, form: str) -> None:
    """A module or an installed package called ``tasks`` that is not ours."""
    file = directory / ("tasks.py" if form == "file" else "tasks/__init__.py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('OWNER = "somebody else"\n')


def python(*words: str, where: Path, path: tuple[Path, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=where,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_wheel_holds_one_package(wheel: Path) -> None:
    top = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"orchestrator"}
    for file in ("tasks/inference.py", "tasks/training/training.py", "conf/config.yaml"):
        assert (wheel / "orchestrator" / file).is_file()
    sources = {p.name for p in (ROOT / "tasks").rglob("*.py")}
    assert sources == {p.name for p in (wheel / "orchestrator" / "tasks").rglob("*.py")}


@pytest.mark.parametrize("form", ["file", "package"])
@pytest.mark.parametrize("install", ["wheel", "checkout"])
def test_another_tasks_does_not_matter(
    form: str, install: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ours = request.getfixturevalue("wheel") if install == "wheel" else ROOT
    site = tmp_path / "site"
    where = tmp_path / "where"
    where.mkdir()
    somebody_else(where if form == "file" else site, form)
    loaded = python("-c", LOADED, where=where, path=(site, ours))
    assert loaded.returncode == 0, loaded.stderr
    planned = python(*PLAN, where=where, path=(site, ours))
    assert planned.returncode == 0, planned.stderr
    assert len(json.loads(planned.stdout)["trials"]) == 1
