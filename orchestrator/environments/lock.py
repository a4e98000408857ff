"""What was asked of an environment, and the lock it resolves to: every package with its version.

A lock is resolved once and stored::

    conf/environment/NAME.lock                   beside the file that asks for it
    <cache>/environment-locks/<key>.lock         for pins of a command line, and other Pythons

so that planning works offline and a hash does not drift. It is resolved again when its file is
deleted, or something else is asked for. The whole lock is part of a trial's identity: what it holds
travels with the configuration, and reproducing needs no file.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from platform import python_version_tuple
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.digest import digest_json
from orchestrator.environments.uv import UvFailed, run_uv
from orchestrator.errors import ConfigError, Infeasible, one_line

_LOCKED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)")
_PYTHON = "# Python: "
_VERSION = re.compile(r"3\.\d+")


@dataclass(frozen=True)
class Request:
    """What an environment must have.

    Attributes
    ----------
    python : str
        ``3.11``.
    requirements : tuple of str
        As pip takes them.
    overrides : tuple of str
        In place of what packages ask for themselves.
    pins : tuple of (str, str)
        Exact versions of packages among what is resolved.
    """

    python: str
    requirements: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    pins: tuple[tuple[str, str], ...] = ()

    @property
    def wanted(self) -> list[str]:
        """Requirements and pins, a line each."""
        return [*self.requirements, *(f"{name}=={version}" for name, version in self.pins)]

    @property
    def key(self) -> str:
        """Digest of what is asked."""
        return digest_json(
            {
                "python": self.python,
                "requirements": sorted(self.requirements),
                "overrides": sorted(self.overrides),
                "pins": sorted(self.pins),
            }
        )


def request_of(asked: Mapping[str, Any]) -> Request | None:
    """What the group ``environment`` of a configuration asks for; None for no environment.

    Raises
    ------
    ConfigError
        For what has no sense.
    """
    pins = tuple(sorted((name, str(version)) for name, version in asked["pins"].items()))
    if not asked["requirements"]:
        for name in ("pins", "overrides", "python"):
            if asked[name]:
                raise ConfigError(
                    "has no effect without an environment",
                    where=f"environment.{name}",
                    fix="Write environment=NAME, of conf/environment",
                )
        return None
    for group in ("requirements", "overrides"):
        for line in asked[group]:
            _check_requirement(line, group)
    python = asked["python"] or ".".join(python_version_tuple()[:2])
    if not _VERSION.fullmatch(python):
        raise ConfigError(
            f"{python!r} is no version of Python", where="environment.python", fix="Write 3.11"
        )
    for name, version in pins:
        if not _is_version(version):
            raise ConfigError(
                f"{version!r} is no version",
                where=f"environment.pins.{name}",
                fix="Write it as the package index does: 2.1.0",
            )
    return Request(python, tuple(asked["requirements"]), tuple(asked["overrides"]), pins)


def _check_requirement(line: str, group: str) -> None:
    try:
        Requirement(line)
    except InvalidRequirement as error:
        raise ConfigError(
            f"{line!r} is no requirement: {one_line(error)}",
            where=f"environment.{group}",
            fix="Write it as pip does, a package and its versions: numpy>=2,<3",
        ) from None


def locked(asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What stands in a trial's identity: ``python`` and ``packages``, name to version.

    Of what cannot be resolved ``python`` and ``asked``, which :func:`why_unresolved` explains.
    """
    request = request_of(asked)
    if request is None:
        return None
    packages = _packages(request, asked.get("file"))
    if isinstance(packages, str):
        _reasons[_key(request.python, request.wanted)] = packages
        return {"python": request.python, "asked": request.wanted}
    return {"python": request.python, "packages": dict(packages)}


def why_unresolved(environment: Mapping[str, Any] | None) -> str | None:
    """One line why a trial's environment has no lock; None where it has one, or there is none."""
    if environment is None or "packages" in environment:
        return None
    key = _key(environment["python"], environment["asked"])
    return f"no such environment: {_reasons.get(key, 'it could not be resolved')}"


_reasons: dict[tuple[str, ...], str] = {}


def _key(python: str, wanted: Sequence[str]) -> tuple[str, ...]:
    return (python, *wanted)


@lru_cache(maxsize=1024)
def _packages(request: Request, file: str | None) -> Mapping[str, str] | str:
    """What is locked, or the reason why nothing can be; asked once for all trials of a plan."""
    beside = Path(file).with_suffix(".lock") if file is not None and not request.pins else None
    kept = cache_root() / "environment-locks" / f"{request.key[:32]}.lock"
    for place in filter(None, (beside, kept)):
        with suppress(OSError):
            if (found := _read(place, request)) is not None:
                return found
    try:
        found = _resolve(request)
    except Infeasible as error:
        return str(error)
    except UvFailed as error:
        if error.unsolvable:
            return str(error)
        # Not known is not impossible: no trial is told so.
        what = f"cannot be resolved now: {error}"
        raise ConfigError(what, where="environment", fix="Try again") from error
    text = _text(request, found)
    # One that was resolved for another Python stays: it is what others share.
    if beside is not None and not _is_of_another_python(beside, request.python):
        with suppress(OSError):  # of a place that belongs to somebody else, the cache has it
            _replace(beside, text)
            return found

    def write(target: Path) -> None:
        target.write_text(text)

    publish(kept, write)
    return found


def _replace(file: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as fresh:
        fresh.write(text)
    os.chmod(fresh.name, 0o644)
    os.replace(fresh.name, file)


def _resolve(request: Request) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as directory:
        wanted, overrides = Path(directory, "wanted.in"), Path(directory, "overrides.txt")
        wanted.write_text("\n".join(request.requirements))
        pins = [f"{name}=={version}" for name, version in request.pins]
        constraints = Path(directory, "pins.txt")
        constraints.write_text("\n".join(pins))
        overrides.write_text("\n".join(request.overrides))
        out = run_uv(
            *("pip", "compile", wanted, "--python-version", request.python),
            *("--constraint", constraints, "--override", overrides),
            *("--no-header", "--no-annotate", "--strip-extras", "--quiet"),
        )
    lines = [line for line in out.splitlines() if line and not line.startswith("#")]
    if strange := next((line for line in lines if not _LOCKED.match(line)), None):
        raise Infeasible(f"no released version: {strange.strip()}")
    found = {m["name"]: m["version"] for m in map(_LOCKED.match, lines) if m}
    for name, version in request.pins:
        # 2.1 is 2.1.0, and 2.9.0 also 2.9.0+cpu.
        got = found.get(_normal(name))
        if got is None or not SpecifierSet(f"=={version}").contains(got, prereleases=True):
            raise Infeasible(f"{name} is not among its packages: {', '.join(found)}")
    return found


def _text(request: Request, packages: Mapping[str, str]) -> str:
    lines = [
        "# Resolved by uv. Delete this file to resolve it again.",
        f"{_PYTHON}{request.python}",
        f"# asked: {request.key}",
        *(f"{name}=={version}" for name, version in sorted(packages.items())),
    ]
    return "\n".join(lines) + "\n"


def _is_of_another_python(lock: Path, python: str) -> bool:
    with suppress(OSError):
        named = [line for line in lock.read_text().splitlines() if line.startswith(_PYTHON)]
        return bool(named) and named != [f"{_PYTHON}{python}"]
    return False


def _read(lock: Path, request: Request) -> dict[str, str] | None:
    """The packages of a lock; None where it answers another request.

    Raises
    ------
    ConfigError
        It was changed by hand, or two versions of it were merged: what it holds is a trial's
        identity, so nothing is guessed.
    """
    lines = lock.read_text().splitlines()
    if f"# asked: {request.key}" not in lines:
        return None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        locked = _LOCKED.fullmatch(line.strip())
        if locked is None or locked["name"] in found or not _is_version(locked["version"]):
            again = locked is not None and locked["name"] in found
            raise ConfigError(
                f"{line.strip()!r} is {'there twice' if again else 'no package and its version'}",
                where=f"{lock}:{number}",
                fix="Delete the file to resolve it again",
            )
        found[locked["name"]] = locked["version"]
    return found


def _is_version(written: str) -> bool:
    try:
        Version(written)
    except InvalidVersion:
        return False
    return True


def _normal(name: str) -> str:
    """As the index writes names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
