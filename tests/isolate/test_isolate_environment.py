from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.attempt import Slot
from orchestrator.isolate.variables import (
    attempt_environment,
    python_module,
    redact,
    server_environment,
)

ROOT = Path(__file__).resolve().parents[2]


def test_a_server_gets_the_hubs_secret_and_no_other() -> None:
    base = {
        "PATH": "/bin",
        "HF_TOKEN": "hf_x",
        "MLFLOW_TRACKING_URI": "http://x",
        "RAY_JOB_ID": "1",
        "MY_API_KEY": "x",
    }
    made = server_environment(base, {"EXTRA_TOKEN": "meant"})
    assert made["PATH"] == "/bin"
    assert made["HF_TOKEN"] == "hf_x"
    assert made["EXTRA_TOKEN"] == "meant"
    assert not {"MLFLOW_TRACKING_URI", "RAY_JOB_ID", "MY_API_KEY"} & set(made)
    assert "HF_TOKEN" not in server_environment(base, {}, hub=False)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "OMP_THREAD_LIMIT",
            "OMP_DYNAMIC",
            "OMP_PLACES",
            "OMP_PROC_BIND",
            "OMP_MAX_ACTIVE_LEVELS",
        ),
        *("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_HW_SUBSET", "MKL_DYNAMIC"),
    ],
)
def test_threads_are_the_trials_whatever_the_shell_says(name: str) -> None:
    """With OMP_THREAD_LIMIT=1 one thread would work, and torch count the two it was told of."""
    made = server_environment({name: "1", "OMP_WAIT_POLICY": "passive"}, {})
    assert name not in made
    assert made["OMP_WAIT_POLICY"] == "passive"


def test_the_program_itself_can_be_imported_by_a_server() -> None:
    import orchestrator

    root = str(Path(orchestrator.__file__).parents[1])
    first = server_environment({"PYTHONPATH": "/somewhere"}, {})["PYTHONPATH"].split(os.pathsep)
    assert first[0] == root
    assert "/somewhere" in first
    assert "" not in first


def test_gpus_are_exactly_the_slots() -> None:
    none = attempt_environment(Slot("n", "h", (0,)), 1, "a", Path("/t"))
    assert none["CUDA_VISIBLE_DEVICES"] == ""
    two = Slot("n", "h", (0,), ("GPU-a", "GPU-b"), "GPU-a,GPU-b")
    assert attempt_environment(two, 1, "a", Path("/t"))["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_redaction_takes_longer_values_first() -> None:
    assert redact(b"abcdefghijkl abcdefgh", ["abcdefghijkl", "abcdefgh"]) == b"******** ********"


def test_the_current_directory_is_not_imported_from(tmp_path: Path) -> None:
    """A node's Ray may have been started in another checkout."""
    for name in ("orchestrator", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong code')\n")
    done = subprocess.run(
        [*python_module("orchestrator.isolate.child"), str(tmp_path / "no-job"), "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "the wrong code" not in done.stderr
    assert "FileNotFoundError" in done.stderr
