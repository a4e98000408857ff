from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.attempt import Slot
from orchestrator.isolate.variables import (
    attempt_environment,
    is_secret,
    python_module,
    redact,
    secret_values,
    server_environment,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "name",
    [
        "RAY_AUTH_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "PGPASSWORD",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "SENTRY_DSN",
    ],
)
def test_secrets_are_known_by_name(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["PATH", "HOME", "OMP_NUM_THREADS", "HF_HOME", "SSH_AUTH_SOCK"])
def test_plain_names_are_not_secrets(name: str) -> None:
    assert not is_secret(name)


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


def test_redaction_takes_longer_values_first_and_leaves_words_and_paths() -> None:
    values = secret_values(
        {
            "A_TOKEN": "abcdefgh",
            "B_TOKEN": "abcdefghijkl",
            "C_TOKEN": "short",
            "HF_TOKEN_PATH": "/home/someone/token",
            "HOME": "/home/someone",
        }
    )
    assert redact(b"abcdefghijkl abcdefgh short /home/someone/token", values) == (
        b"******** ******** short /home/someone/token"
    )


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
