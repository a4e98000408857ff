"""What differs between two ends: packages of two environments, or versions of one package.

Either way a search is about *changes* by name, and every set of them that it asks for is an
environment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from packaging.version import Version

from orchestrator.environments.releases import releases_between
from orchestrator.environments.requires import (
    differing,
    mixture,
    needs,
    requires_of,
    unmet,
)
from orchestrator.errors import UsageError
from orchestrator.report.show.bisect_view import Change
from orchestrator.search.coupled import Coupling, Set
from orchestrator.search.culprit import Answer

Environment = dict[str, Any]


class Differences(ABC):
    """Changes that make the bad end of the good one.

    Attributes
    ----------
    coupling : Coupling
        Their names, and which need which.
    changes : mapping of str to Change
        What they are.
    """

    coupling: Coupling
    changes: Mapping[str, Change]

    @abstractmethod
    def environment(self, changes: Set) -> Environment:
        """The good end with these changes made."""

    @abstractmethod
    def called(self, changes: Set) -> str:
        """The same for the user."""

    def problem(self, changes: Set) -> str | None:
        """Why that cannot be installed; None where nothing speaks against it."""
        return None


class _Packages(Differences):
    """Of two environments."""

    def __init__(self, good: Environment, bad: Environment) -> None:
        self.good, self.bad = good, bad
        before, after = good["packages"], bad["packages"]
        self.requires = requires_of(good), requires_of(bad)
        self.coupling = Coupling(needs(before, after, *self.requires))
        self.changes = {
            name: Change(name, before.get(name), after.get(name)) for name in self.coupling.needs
        }

    def environment(self, changes: Set) -> Environment:
        packages = mixture(self.good["packages"], self.bad["packages"], changes)
        return {"python": self.good["python"], "packages": packages}

    def called(self, changes: Set) -> str:
        if changes == frozenset(self.changes):
            return f"all {len(changes)} changes: the bad end"
        return ", ".join(sorted(changes))


class _Versions(Differences):
    """Of one package: a version changes what it and all before it change."""

    def __init__(self, within: _Packages, package: str, needed: Set, versions: list[str]) -> None:
        self._within, self._package, self._needed = within, package, needed
        self._versions = versions
        start = within.good["packages"][package]
        before = dict(zip(versions, [start, *versions[:-1]], strict=True))
        self.changes = {v: Change(package, earlier, v) for v, earlier in before.items()}
        self.coupling = Coupling({v: frozenset({e} - {start}) for v, e in before.items()})

    def environment(self, changes: Set) -> Environment:
        found = self._within.environment(self._needed)
        if changes:
            version = max(changes, key=self._versions.index)
            found["packages"] = {**found["packages"], self._package: version}
        return found

    def called(self, changes: Set) -> str:
        return f"{self._package} {max(changes, key=self._versions.index)}"

    def problem(self, changes: Set) -> str | None:
        if not changes or len(changes) == len(self._versions):
            return None
        return unmet(self.environment(changes), self._package, self._within.requires)


def between_ends(good: Environment, bad: Environment) -> Differences:
    """The packages that differ; both ends are built, to see what requires what.

    Raises
    ------
    UsageError
        None differs, or Python does.
    """
    if good["python"] != bad["python"]:
        raise UsageError(
            f"the ends have Python {good['python']} and {bad['python']}",
            where="bisect",
            fix="Choose ends with the same Python; packages are compared, not Pythons",
        )
    if not differing(good["packages"], bad["packages"]):
        raise UsageError("both ends have the same packages", where="bisect")
    return _Packages(good, bad)


def between_versions(differences: Differences, answer: Answer) -> Differences | None:
    """The released versions of the culprit from one end to the other.

    None where it is several packages, was added or removed, or has no version in between.
    """
    culprit = answer.culprits[0]
    if not isinstance(differences, _Packages) or len(answer.culprits) > 1:
        return None
    if len(culprit.changes) > 1 or len(culprit.changes[0]) > 1:
        return None
    (package,) = culprit.changes[0]
    change = differences.changes[package]
    if change.before is None or change.after is None:
        return None
    between = releases_between(package, change.before, change.after, differences.good["python"])
    if not between:
        return None
    order = sorted(between, key=Version, reverse=Version(change.before) > Version(change.after))
    return _Versions(differences, package, culprit.needed, [*order, change.after])
