"""What changes between two environments need each other: read from what is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from orchestrator.environments.releases import releases_between
from orchestrator.environments.requires import (
    Requires,
    differing,
    mixture,
    needs,
    requires_of,
    unmet,
)
from orchestrator.errors import UsageError
from testing.planted import PYTHON, only_wheels, wheel


def required(**lines: str) -> Requires:
    return {
        name.replace("_", "-"): tuple(Requirement(each) for each in text.split(",") if each)
        for name, text in lines.items()
    }


def test_a_mixture_is_the_good_end_with_changes_made() -> None:
    good, bad = {"a": "1", "b": "1", "old": "1"}, {"a": "2", "b": "1", "new": "1"}
    assert differing(good, bad) == ("a", "new", "old")
    assert mixture(good, bad, ["a", "old"]) == {"a": "2", "b": "1"}
    assert mixture(good, bad, differing(good, bad)) == bad
    assert mixture(good, bad, []) == good


def test_a_package_needs_what_its_new_version_requires() -> None:
    good, bad = {"t": "1", "k": "1", "n": "1"}, {"t": "2", "k": "2", "n": "2"}
    found = needs(good, bad, required(t="k"), required(t="k>=2"))
    assert found == {"k": frozenset(), "n": frozenset(), "t": frozenset("k")}


def test_and_what_its_old_version_cannot_do_with() -> None:
    good, bad = {"t": "1", "k": "1"}, {"t": "2", "k": "2"}
    # k alone would break t 1: it needs t.
    found = needs(good, bad, required(t="k<2"), required(t="k"))
    assert found == {"k": frozenset("t"), "t": frozenset()}
    both = needs(good, bad, required(t="k==1"), required(t="k==2"))
    assert both == {"k": frozenset("t"), "t": frozenset("k")}


def test_what_was_added_or_removed_is_a_change() -> None:
    good, bad = {"t": "1", "old": "1"}, {"t": "2", "new_one": "1"}
    found = needs(good, {"t": "2", "new-one": "1"}, required(t="old"), required(t="New_One"))
    assert found == {"new-one": frozenset(), "old": frozenset("t"), "t": frozenset(["new-one"])}
    assert bad["new_one"]


def test_a_requirement_that_its_own_environment_overrides_does_not_count() -> None:
    good, bad = {"t": "1", "k": "1"}, {"t": "2", "k": "2"}
    found = needs(good, bad, required(t="k>5,gone"), required(t="k>5,gone"))
    assert found == {"k": frozenset(), "t": frozenset()}


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only packages that there are."""
    return only_wheels(tmp_path, monkeypatch)


def test_what_is_installed_says_what_it_requires(wheels: Path) -> None:
    lines = [
        "two[fast]>=1",
        "of-another; python_version < '3'",
        "of-this; python_version >= '3'",
    ]
    wheel(wheels, "one", "1.0", {"one.py": ""}, requires=lines)
    wheel(
        wheels, "two", "1.0", {"two.py": ""}, requires=["quick; extra == 'fast'", "no; extra=='x'"]
    )
    environment = {"python": PYTHON, "packages": {"one": "1.0", "two": "1.0"}}
    found = {
        name: [each.name for each in wanted] for name, wanted in requires_of(environment).items()
    }
    assert found == {"one": ["two", "of-this"], "two": ["quick"]}


def test_versions_between_two_are_what_the_index_has(wheels: Path) -> None:
    for version in ("1.0", "1.1", "1.2", "1.10", "2.0", "3.0"):
        wheel(wheels, "one", version, {"one.py": ""})
    assert releases_between("one", "1.0", "2.0", PYTHON) == ["1.10", "1.2", "1.1"]
    assert releases_between("one", "2.0", "1.1", PYTHON) == ["1.10", "1.2"]
    assert releases_between("one", "2.0", "3.0", PYTHON) == []


def test_versions_between_are_found_whatever_their_build_and_after_a_post_release(
    wheels: Path,
) -> None:
    for version in ("1.0+cpu", "1.0.post1", "1.1+cpu", "1.2+cpu"):
        wheel(wheels, "one", version, {"one.py": ""})
    assert releases_between("one", "1.0+cpu", "1.2+cpu", PYTHON) == ["1.1+cpu", "1.0.post1"]


def test_an_index_that_does_not_answer_is_not_one_without_versions(
    wheels: Path, dead_index: str
) -> None:
    with pytest.raises(UsageError, match="versions of one are not known"):
        releases_between("one", "1.0", "2.0", PYTHON)


def test_a_version_that_does_not_fit_is_known_before_it_is_measured(wheels: Path) -> None:
    wheel(wheels, "one", "1.5", {"one.py": ""}, requires=["two>=2"])
    wheel(wheels, "one", "1.6", {"one.py": ""}, requires=["two"])
    wheel(wheels, "two", "1.0", {"two.py": ""})
    ends = required(one="two"), required(one="two>=2")
    packages = {"one": "1.5", "two": "1.0"}
    environment = {"python": PYTHON, "packages": packages}
    assert unmet(environment, "one", ends) == "one 1.5 requires two>=2"
    packages["one"] = "1.6"
    assert unmet(environment, "one", ends) is None
