"""Which versions of a package an index has, between two: asked of uv, by whatever index it uses."""

from __future__ import annotations

import tempfile
from pathlib import Path

from packaging.version import Version

from orchestrator.environments.uv import UvFailed, run_uv
from orchestrator.errors import UsageError


def releases_between(package: str, one: str, other: str, python: str) -> list[str]:
    """Versions that can be installed under ``python``, from the newest on, without the two.

    uv has no list of versions, but says which is the newest under a limit.

    Raises
    ------
    UsageError
        The index cannot be asked.
    """
    # Limits do not tell builds of one version (`2.9.0+cpu`) apart; `>1.0` leaves out 1.0.post1.
    low, high = (version.public for version in sorted(map(Version, (one, other))))
    found: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        wanted = Path(directory, "wanted.in")
        while True:
            limit = Version(found[-1]).public if found else high
            wanted.write_text(f"{package}>={low},!={low},<{limit}")
            try:
                out = run_uv(
                    *("pip", "compile", wanted, "--python-version", python, "--no-deps"),
                    *("--no-header", "--no-annotate", "--quiet"),
                )
            except UvFailed as error:
                if error.unsolvable:
                    return found
                what = f"the versions of {package} are not known: {error}"
                raise UsageError(what, where="--versions") from error
            found.append(out.strip().rpartition("==")[2])
