"""What people read is plain English: wordings that have confused readers do not come back.

Read are the README, the pages, the changelog, and every string of the program that can reach a
terminal or a page. Docstrings and comments are not, but for those that are a command's help.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGURATION = sorted((ROOT / "conf").rglob("*.yaml"))
CODE = [*sorted((ROOT / "orchestrator").rglob("*.py")), *sorted((ROOT / "tasks").rglob("*.py"))]

# What is written, and what to write instead.
WORDINGS = {
    r"cannot be meant together": "conflict: …",
    r"\ba person\b": "the user",
    r"\b(?:is|are|was|were) told\b": "the user sees, the report shows",
    r"\b(?:was|were|be|is) had\b": "measured, available",
    r"\bwhat (?:is|was) (?:had|said|told)\b": "name the thing",
    r"\bnothing beats\b": "no format is faster than …",
    r"\bproducts in (?:float|bfloat|half)": "matmuls upcast to float32",
    r"\bvouch": "could not be checked",
    r"(?<!Connection )(?<!:)\brefus(?:es?|ed|ing|al)\b": "rejects",
    r"\bbeside\b": "next to, in addition to",
    r"\bheld against\b": "compared with",
    r"\bwhere (?:you|a user) stands?\b": "in the current directory",
    r"\bover so (?:many|much)\b": "over this many",
    r"\banew\b": "again",
    r"\bcame? out whole\b": "passed, is complete",
    r"\bbooks (?:are )?closed\b": "recorded",
    r"\ba moment before\b": "just before",
    r"(?-i:\bPROTOCOL\b)": "docs/protocol.md",
}
_ANY = re.compile("|".join(f"(?P<w{i}>{w})" for i, w in enumerate(WORDINGS)), re.IGNORECASE)


def found_in(text: str) -> list[str]:
    """Each wording in ``text`` that is not to be used, with what to write instead."""
    # What is marked as code is quoted, and a line's end is a space.
    text = re.sub(r"\s+", " ", re.sub(r"`[^`\n]*`", "`…`", text))
    better = list(WORDINGS.values())
    return [
        f"{match[0]!r} → {better[int(str(match.lastgroup)[1:])]}" for match in _ANY.finditer(text)
    ]


def strings(file: Path) -> Iterator[tuple[int, str]]:
    """Strings of a module that people may see, with their lines."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    silent: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            silent.add(node.value)
        if isinstance(node, ast.FunctionDef) and any(_is_command(d) for d in node.decorator_list):
            yield node.lineno, ast.get_docstring(node) or ""
        if isinstance(node, ast.JoinedStr):
            silent.update(node.values)
            yield (
                node.lineno,
                "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values),
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in silent:
            yield node.lineno, node.value


def _is_command(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Attribute) and called.attr in ("command", "group")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Nothing of it is told.", 1),
        ("It was\nhad once, and nothing\n  vouches for it.", 2),
        ("error: Connection refused; `refused` is what it says. Tell them apart.", 0),
        ("# Protocol: what protocol=quick means; PROTOCOL says", 1),
    ],
)
def test_a_wording_is_found_across_lines_and_not_in_code(text: str, found: int) -> None:
    assert len(found_in(text)) == found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_is_plain_english(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert found_in(text) == []


def test_descriptions_and_comments_of_the_configuration_are_plain_english() -> None:
    found = {str(file): found_in(file.read_text(encoding="utf-8")) for file in CONFIGURATION}
    assert {file: wordings for file, wordings in found.items() if wordings} == {}


def test_what_the_program_says_is_plain_english() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {wording}"
        for file in CODE
        for line, text in strings(file)
        for wording in found_in(text)
    ]
    assert found == []
