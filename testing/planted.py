"""Two environments that differ in eight packages, one of which is slower; and a task that uses it.

Wheels of plain Python in a directory; uv, its resolver and its installer are the real ones. The
package ``dials`` is the culprit: it says how long a step takes. ``hands`` needs at least the
``dials`` of its own version, the others need nothing.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
CULPRIT, TIED = "dials", "hands"
INNOCENT = ("amber", "brass", "cedar", "ebony", "flint", "grain")
TASK = '''
"""Winds a clock: each step takes as long as ``dials`` says."""

import time
from dataclasses import dataclass

from orchestrator.measure import MetricSpec, Task, timed


@dataclass
class Config:
    name: str = "winding"


def run(identity, recorder):
    import dials

    taken_s = []
    with recorder.phase("winding"):
        for _ in range(9):
            with timed(recorder.clock) as span:
                time.sleep(dials.STEP_S)
            taken_s.append(span.seconds)
    recorder.samples("step_s", "s", taken_s)


METRICS = (MetricSpec("step_s", "s", better="lower", meaning="one step"),)
TASK = Task(
    "winding",
    Config,
    run,
    packages=lambda identity: ("dials",),
    metrics=METRICS,
    headline=("step_s",),
    whole_node=False,
    content=lambda identity: {},
)
'''


def wheel(
    directory: Path,
    name: str,
    version: str,
    files: dict[str, str],
    entry: str = "",
    requires: Sequence[str] = (),
) -> Path:
    """Write a wheel of plain Python files; returns its path."""
    info = f"{name}-{version}.dist-info"
    required = "".join(f"Requires-Dist: {each}\n" for each in requires)
    every = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **({f"{info}/entry_points.txt": entry} if entry else {}),
    }
    every[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*every, f"{info}/RECORD"))
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in every.items():
            archive.writestr(inside, text)
    return path


def only_wheels(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory, empty yet: uv finds no other packages than those that are put into it."""
    directory = place / "wheels"
    directory.mkdir()
    for name in list(os.environ):
        if name.startswith("UV_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(directory))
    monkeypatch.setenv("UV_CACHE_DIR", str(place / "uv"))
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(place / "cache"))
    return directory


def plant(directory: Path, *, slower: float, step_s: float = 0.02) -> dict[str, str]:
    """Wheels, the environments ``before`` and ``after``, and the task; returns the variables.

    Parameters
    ----------
    directory : Path
        Empty. ``conf`` in it is to be given as ``--config-dir``.
    slower : float
        Of the version that ``after`` has, relative: 1.2.
    """
    wheels, path, conf = (directory / name for name in ("wheels", "path", "conf/environment"))
    for each in (wheels, path, conf):
        each.mkdir(parents=True)
    names = (*INNOCENT, CULPRIT, TIED)
    for version, factor in (("1.0", 1.0), ("2.0", slower)):
        for name in INNOCENT:
            wheel(wheels, name, version, {f"{name}.py": ""})
        wheel(wheels, CULPRIT, version, {f"{CULPRIT}.py": f"STEP_S = {step_s * factor!r}\n"})
        wheel(wheels, TIED, version, {f"{TIED}.py": ""}, requires=[f"{CULPRIT}>={version}"])
    entry = "[orchestrator.tasks]\nwinding = winding:TASK\n"
    task = wheel(wheels, "winding", "1.0", {"winding.py": TASK}, entry)
    with zipfile.ZipFile(task) as archive:
        archive.extractall(path)
    for option, version in (("before", "1.0"), ("after", "2.0")):
        wanted = ["winding", *(f"{name}=={version}" for name in names)]
        (conf / f"{option}.yaml").write_text(f"requirements: {wanted}\n")
    (conf.parent / "task").mkdir()
    (conf.parent / "task" / "winding.yaml").write_text("name: winding\n")
    return {
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(wheels),
        "UV_CACHE_DIR": str(directory / "uv"),
        "ORCHESTRATOR_CACHE": str(directory / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(path), os.environ.get("PYTHONPATH")))),
    }
