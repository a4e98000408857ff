"""Which commit a directory is at."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

GIT_TIMEOUT_S = 5.0


def git_state(directory: Path) -> dict[str, Any]:
    """``commit``, ``dirty``, ``branch``; ``commit`` None with a ``reason`` where there is none."""

    def git(*words: str) -> str:
        done = subprocess.run(
            # A status that refreshes the index takes its lock: a person's commit would then fail.
            ["git", "--no-optional-locks", "-C", str(directory), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {
            "commit": commit,
            "dirty": dirty,
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        }
    except FileNotFoundError:
        return {"commit": None, "reason": "git is not installed"}
    except subprocess.TimeoutExpired:
        return {"commit": None, "reason": f"git took longer than {GIT_TIMEOUT_S:.0f} s"}
    except subprocess.CalledProcessError:
        return {"commit": None, "reason": "not a git checkout"}
