"""``python -m orchestrator``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script; exits with the command's code."""
    from orchestrator.cli import main as run_cli
    from orchestrator.stopping import leave

    leave(run_cli(sys.argv[1:]))


if __name__ == "__main__":
    main()
