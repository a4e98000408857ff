"""What changes between two environments need each other: from what their packages require.

Nothing is asked of an index: both environments are built, and each installed package says itself
what it requires.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from orchestrator.environments.build import built

#: Of each package of an environment, what it requires there.
Requires: TypeAlias = Mapping[str, tuple[Requirement, ...]]


def differing(good: Mapping[str, str], bad: Mapping[str, str]) -> tuple[str, ...]:
    """Names of packages that are not the same in both, sorted; versions by name each."""
    return tuple(sorted(name for name in {**good, **bad} if good.get(name) != bad.get(name)))


def mixture(
    good: Mapping[str, str], bad: Mapping[str, str], changes: Iterable[str]
) -> dict[str, str]:
    """The packages of ``good`` with those named in ``changes`` as ``bad`` has them."""
    mixed = dict(good)
    for name in changes:
        mixed.pop(name, None)
        if name in bad:
            mixed[name] = bad[name]
    return dict(sorted(mixed.items()))


def needs(
    good: Mapping[str, str], bad: Mapping[str, str], of_good: Requires, of_bad: Requires
) -> dict[str, frozenset[str]]:
    """Of each differing package those that must change with it, or a requirement is not met.

    A requirement that is not met in its own environment was overridden there, and is not looked at.

    Parameters
    ----------
    good, bad : mapping of str to str
        Versions of the two ends.
    of_good, of_bad : mapping of str to requirements
        Of their packages.
    """
    changes = differing(good, bad)
    found: dict[str, set[str]] = {name: set() for name in changes}
    for name in changes:
        for wanted in of_bad.get(name, ()):
            other = canonicalize_name(wanted.name)
            if other in found and _met(wanted, bad) and not _met(wanted, good):
                found[name].add(other)
        for wanted in of_good.get(name, ()):
            other = canonicalize_name(wanted.name)
            if other in found and _met(wanted, good) and not _met(wanted, bad):
                found[other].add(name)
    return {name: frozenset(others - {name}) for name, others in found.items()}


def unmet(
    environment: Mapping[str, Any], package: str, ends: tuple[Requires, Requires]
) -> str | None:
    """Why ``package`` does not fit into an environment, by what it and the others require.

    Parameters
    ----------
    environment : mapping
        It is built, to see what the package requires.
    ends : tuple of requirements
        Of two environments whose packages, all but this one, ``environment`` has.
    """
    packages = environment["packages"]
    overridden = {
        str(wanted)
        for end in ends
        for required in end.values()
        for wanted in required
        if canonicalize_name(wanted.name) not in packages
    }
    for name, required in requires_of(environment).items():
        for wanted in required:
            about = package in (name, canonicalize_name(wanted.name))
            if about and str(wanted) not in overridden and not _met(wanted, packages):
                return f"{name} {packages[name]} requires {wanted}"
    return None


def requires_of(environment: Mapping[str, Any]) -> dict[str, tuple[Requirement, ...]]:
    """What each package of an environment requires; it is built first where it is not there.

    Raises
    ------
    Infeasible, InputError
        It cannot be built.
    """
    python = built(environment)
    site = python.parents[1] / "lib" / f"python{environment['python']}" / "site-packages"
    lines = _installed(site)
    extras: dict[str, set[str]] = {}
    while True:
        found = {
            name: tuple(_applying(required, environment["python"], extras.get(name, ())))
            for name, required in lines.items()
        }
        asked: dict[str, set[str]] = {}
        for required in found.values():
            for one in required:
                if one.extras:
                    asked.setdefault(canonicalize_name(one.name), set()).update(one.extras)
        if asked == extras:
            return found
        extras = asked


def _installed(site: Path) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for each in metadata.distributions(path=[str(site)]):
        required = []
        for line in each.requires or ():
            try:
                required.append(Requirement(line))
            except InvalidRequirement:
                continue  # uv could read it, or the package would not be installed
        found[canonicalize_name(each.metadata["Name"])] = required
    return found


def _applying(
    required: Iterable[Requirement], python: str, extras: Iterable[str]
) -> Iterable[Requirement]:
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    for one in required:
        asked = ("", *extras)
        if one.marker is None or any(one.marker.evaluate({**here, "extra": e}) for e in asked):
            yield one


def _met(wanted: Requirement, packages: Mapping[str, str]) -> bool:
    version = packages.get(canonicalize_name(wanted.name))
    return version is not None and wanted.specifier.contains(version, prereleases=True)
