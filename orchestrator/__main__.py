"""``python -m orchestrator``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script; exits with the command's code."""
    from orchestrator.commands.interrupt import leave
    from orchestrator.commands.parser import main as run_cli

    leave(run_cli(sys.argv[1:]))


if __name__ == "__main__":
    main()
