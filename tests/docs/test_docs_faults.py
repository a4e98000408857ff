"""Every fault of docs/faults.md names the test that commits it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


def faults() -> list[tuple[str, list[str]]]:
    """Each fault and the tests it names as FILE::FUNCTION or FILE, in the order of the page.

    ``::FUNCTION`` is of the file named last, "the same" the test named last.
    """
    found: list[tuple[str, list[str]]] = []
    file, last = "", ""
    for line in (ROOT / "docs" / "faults.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or len(cells) != 3 or cells[0] == "fault":
            continue
        tests = [last] if cells[2].startswith("the same") else []
        for name in re.findall(r"`((?:\w+/)*(?:test_\w+\.py)?(?:::\w+)?)`", cells[2]):
            file = name.partition("::")[0] or file
            last = f"{file}{name[name.find('::') :] if '::' in name else ''}"
            tests.append(last)
        found.append((cells[0], tests))
    return found


@pytest.mark.parametrize(("fault", "named"), faults())
def test_the_test_of_a_fault_is_there(fault: str, named: list[str]) -> None:
    assert named, "no test is named"
    for test in named:
        file, _, function = test.partition("::")
        path = TESTS / file if "/" in file else TESTS / "faults" / file
        assert path.is_file(), file
        assert not function or f"def {function}(" in path.read_text(), test


def test_all_tables_are_read() -> None:
    assert len(faults()) > 20
