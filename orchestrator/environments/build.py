"""Environments built from their locks, once a node, and the Python that attempts run in.

::

    <cache>/environments/<key>/            a virtual environment, whole or not there
    <cache>/environment-code/<key>/        one link, `orchestrator`: what else such a Python imports

The second is a directory of its own because this program's packages stand beside it where it is
installed: on the import path they would hide the environment's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.digest import digest_json, digest_text
from orchestrator.environments.uv import UvFailed, run_uv
from orchestrator.errors import Infeasible, InputError
from orchestrator.measure.wording import counted

# uv's words for a version that no index has.
_MISSING = "there is no version of"


def key_of(environment: Mapping[str, Any]) -> str:
    """What an environment is kept under: its Python and packages."""
    return digest_json({name: environment[name] for name in ("python", "packages")})[:32]


def place_of(environment: Mapping[str, Any]) -> Path:
    """Where it is built, on this node."""
    return cache_root() / "environments" / key_of(environment)


def is_built(environment: Mapping[str, Any]) -> bool:
    """Whether it is there."""
    return place_of(environment).is_dir()


def built(environment: Mapping[str, Any], cancelled: Callable[[], bool] = lambda: False) -> Path:
    """Its Python, the environment built first where it is not there; others wait meanwhile.

    Parameters
    ----------
    environment : mapping
        ``python`` and ``packages``, as in a trial's identity.
    cancelled : callable
        Asked while it is built.

    Raises
    ------
    Infeasible
        If the index lacks one of its packages.
    InputError
        If it cannot be built for another reason: a line of the installer's, or that the disk is
        full.
    Cancelled
    """

    def build(target: Path) -> None:
        lock = target.with_name("lock.txt")
        lines = [f"{name}=={version}" for name, version in sorted(environment["packages"].items())]
        lock.write_text("\n".join(lines))
        try:
            run_uv(
                *("venv", "--quiet", "--relocatable", "--python", environment["python"], target),
                cancelled=cancelled,
            )
            run_uv(
                *("pip", "install", "--quiet", "--compile-bytecode", "--no-deps"),
                *("--python", target / "bin" / "python", "--requirement", lock),
                cancelled=cancelled,
            )
        except UvFailed as error:
            missing = _MISSING in str(error)
            raise (Infeasible if missing else InputError)(
                f"this environment cannot be built: {str(error).rstrip('.')}",
                where="environment",
                fix="UV_INDEX, UV_FIND_LINKS or UV_TORCH_BACKEND names an index that has it"
                if missing
                else None,
            ) from error

    return publish(place_of(environment), build) / "bin" / "python"


def told(environment: Mapping[str, Any]) -> str:
    """What a plan says of it: ``Python 3.11, 6 packages: built``."""
    state = "built" if is_built(environment) else "to be built, once on each node"
    packages = counted(len(environment["packages"]), "package")
    return f"environment of Python {environment['python']}, {packages}: {state}"


def code_directory() -> Path:
    """A directory that holds a link to this program's package, and nothing else."""
    package = Path(orchestrator.__file__).resolve().parent
    directory = cache_root() / "environment-code" / digest_text(str(package))[:32]
    link = directory / package.name
    if not link.is_symlink():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=directory.parent)) / package.name
        fresh.symlink_to(package)
        os.replace(fresh, link)
        fresh.parent.rmdir()
    return directory
