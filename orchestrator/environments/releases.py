"""Which versions of a package an index has, between two: asked of uv, by whatever index it uses."""

from __future__ import annotations

import tempfile
from pathlib import Path

from packaging.version import Version

from orchestrator.environments.uv import UvFailed, run_uv


def releases_between(package: str, one: str, other: str, python: str) -> list[str]:
    """Versions that can be installed under ``python``, from the newest on, without the two.

    uv has no list of versions, but says which is the newest under a limit.
    """
    low, high = sorted((one, other), key=Version)
    found: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        wanted = Path(directory, "wanted.in")
        while True:
            wanted.write_text(f"{package}>{low},<{found[-1] if found else high}")
            try:
                out = run_uv(
                    *("pip", "compile", wanted, "--python-version", python, "--no-deps"),
                    *("--no-header", "--no-annotate", "--quiet"),
                )
            except UvFailed:
                return found
            found.append(out.strip().rpartition("==")[2])
