"""Importing the room is cheap."""

from __future__ import annotations

import subprocess
import sys


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = ("ray", "torch", "mlflow", "transformers", "pandas", "plotly", "hydra")
    code = f"import sys, orchestrator.schedule.driver; print(*set(sys.modules) & set({heavy!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
