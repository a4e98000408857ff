"""What two attempts of one trial were not made with alike: packages, driver, kernel, commit. Pure.

What may explain that one took longer than the other; content and machine are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.attempt import AttemptReport

Kind = Literal["package", "python", "driver", "kernel", "commit", "variable", "program"]

# Of the facts of software that are neither a package nor a variable.
_NAMED: dict[str, Kind] = {"python": "python", "driver": "driver", "measuring": "program"}
_COMMIT_CHARS = 12


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was.

    Attributes
    ----------
    kind : str
        ``package``, ``python``, ``driver``, ``kernel``, ``commit`` (of this program's checkout),
        ``variable`` or ``program`` (what its tasks measure).
    name : str
    before, after : str or None
        None where there was, or is, none.
    """

    kind: Kind
    name: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        return f"{self.name} {self.before or 'none'} → {self.after or 'none'}"

    @property
    def can_be_bisected(self) -> bool:
        """Whether packages and commits can be put together differently to find out."""
        return self.kind in ("package", "commit")


def differences(
    before: AttemptReport,
    after: AttemptReport,
    environments: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None] = (None, None),
) -> tuple[Difference, ...]:
    """Everything recorded that differs, what the engine depends on first.

    Parameters
    ----------
    before, after : AttemptReport
        Attempts on either side of a step.
    environments : tuple of (mapping or None)
        The ``environment`` of either's identity: where it has one, its packages are these.
    """
    sides = [dict(_facts(r, lock)) for r, lock in zip((before, after), environments, strict=True)]
    software = {name for r in (before, after) if r.conditions for name in r.conditions.software}
    found = [
        Difference(kind, name, sides[0].get((kind, name)), sides[1].get((kind, name)))
        for kind, name in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get((kind, name)) != sides[1].get((kind, name))
    ]
    return tuple(sorted(found, key=lambda d: d.kind == "package" and d.name not in software))


def _facts(
    report: AttemptReport, environment: Mapping[str, Any] | None
) -> Iterator[tuple[tuple[Kind, str], str]]:
    provenance = report.provenance
    packages = (environment or provenance).get("packages") or {}
    for name, version in packages.items():
        yield ("package", name), str(version)
    for name, value in (report.conditions.software if report.conditions else {}).items():
        # Its version with the local build is told here alone.
        kind = _NAMED.get(name) or ("variable" if name.isupper() else "package")
        yield (kind, name), str(value)
    gpus = (report.facts.get("hardware") or {}).get("gpus") or ()
    if drivers := {str(gpu["driver_version"]) for gpu in gpus if gpu.get("driver_version")}:
        yield ("driver", "driver"), "/".join(sorted(drivers))
    if kernel := provenance.get("kernel"):
        yield ("kernel", "kernel"), str(kernel)
    git = provenance.get("git") or {}
    if commit := git.get("commit"):
        changed = "+changes" if git.get("dirty") else ""
        yield ("commit", "commit"), f"{str(commit)[:_COMMIT_CHARS]}{changed}"
