"""The API reference: it builds strictly, and what it shows says what it takes, gives and raises."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

griffe = pytest.importorskip("griffe", reason="the docs extra is not installed")

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
# Raised on a mistake of ours, not of the caller's.
NOT_TOLD = {"AssertionError", "NotImplementedError"}


@pytest.fixture(scope="module")
def shown() -> list[Any]:
    """Every public object that a page of the reference names, or that such a one holds."""
    logging.getLogger("griffe").setLevel(logging.ERROR)
    loader = griffe.GriffeLoader(search_paths=[str(ROOT)], docstring_parser="numpy")
    package = loader.load("orchestrator")
    found = []
    for page in PAGES:
        for name in re.findall(r"^::: orchestrator\.(\S+)", page.read_text("utf-8"), re.MULTILINE):
            found += _within(package[name])
    assert len(found) > 150
    return found


def _within(item: Any) -> Iterator[Any]:
    yield item
    if item.is_module or item.is_class:
        for name, member in item.members.items():
            if not name.startswith("_") and not member.is_alias:
                yield from _within(member)


def _section(item: Any, kind: str) -> Any:
    parsed = [] if item.docstring is None else item.docstring.parsed
    return next((section.value for section in parsed if section.kind.value == kind), [])


def test_everything_shown_is_described(shown: list[Any]) -> None:
    bare = [o.path for o in shown if o.docstring is None and (not o.is_attribute or o.is_function)]
    assert bare == []


def test_errors_that_are_raised_are_told(shown: list[Any]) -> None:
    untold = {}
    for item in shown:
        if item.is_function:
            raised = set(re.findall(r"\braise (\w+)\(", item.source or "")) - NOT_TOLD
            told = " ".join(str(entry.annotation) for entry in _section(item, "raises"))
            if missing := {name for name in raised if name not in told}:
                untold[item.path] = missing
    assert untold == {}


def test_every_field_is_told(shown: list[Any]) -> None:
    untold = {}
    for item in shown:
        if not item.is_class or "dataclass" not in item.labels:
            continue
        entries = [*_section(item, "attributes"), *_section(item, "parameters")]
        told = {name.strip() for entry in entries for name in entry.name.split(",")}
        fields = {
            name
            for name, member in item.members.items()
            if member.is_attribute and not name.startswith("_") and "property" not in member.labels
        }
        if missing := fields - told:
            untold[item.path] = missing
    assert untold == {}


def test_the_site_builds_with_every_link_leading_somewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    page = (tmp_path / "site" / "reference" / "measure.html").read_text("utf-8")
    assert 'id="orchestrator.measure.task.Task"' in page
    assert ":class:" not in page
