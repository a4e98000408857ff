"""The room's public surface, and that importing it is cheap."""

from __future__ import annotations

import subprocess
import sys

import orchestrator.schedule as schedule


def test_exported_names_exist_and_are_sorted() -> None:
    assert all(hasattr(schedule, name) for name in schedule.__all__)
    assert schedule.__all__ == sorted(schedule.__all__)


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = ("ray", "torch", "mlflow", "transformers", "pandas", "plotly", "hydra")
    code = f"import sys, orchestrator.schedule; print(*set(sys.modules) & set({heavy!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
