"""Runs a command under simulated GPUs: ``python -m ...telemetry.simulate h100 COMMAND``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.telemetry.simulate.library import environment
from orchestrator.telemetry.simulate.scenario import read_scenario, shipped


def main(arguments: Sequence[str]) -> int:
    """Run ``COMMAND`` and return its exit code; without arguments, list what is shipped."""
    if len(arguments) < 2:
        print("usage: python -m orchestrator.telemetry.simulate SCENARIO COMMAND [ARGUMENT ...]")
        for name in shipped():
            print(f"  {name:<16}{read_scenario(name).description}")
        return 0 if not arguments else 2
    try:
        with tempfile.TemporaryDirectory(prefix="orchestrator-nvml-") as folder:
            added = environment(arguments[0], Path(folder))
            command = list(arguments[1:])
            return subprocess.run(command, env={**os.environ, **added}, check=False).returncode
    except OrchestratorError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
