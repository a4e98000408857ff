"""``make test-gpu`` rehearsed on the CPU by an interpreter that has only what it asks for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from testing.gpu.__main__ import run
from testing.gpu.bench import Bench, Failure, Skip

ROOT = Path(__file__).resolve().parents[2]
THERE = ("torch", "transformers", "numpy", "nvidia-ml-py")
NOT_THERE = (
    "ray",
    "hydra",
    "mlflow",
    "bitsandbytes",
    "accelerate",
    "psutil",
    "pyarrow",
    "omegaconf",
)


def installed_with(names: tuple[str, ...]) -> list[Distribution]:
    """The distributions of these names and all that they need themselves."""
    found: dict[str, Distribution] = {}
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            assert name not in names, f"{name} is not installed"
            continue  # of another platform
        for line in found[name].requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                todo.append(needed.name)
    return list(found.values())


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has nothing else: their files, linked into an empty environment."""
    place = tmp_path_factory.mktemp("bare")
    venv.create(place, symlinks=True)
    (packages,) = place.glob("lib/python*/site-packages")
    for found in installed_with(THERE):
        tops = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
    return str(place / "bin" / "python")


def call(*command: str) -> subprocess.CompletedProcess[str]:
    """In the checkout, which is installed nowhere."""
    hidden = {"PYTHONPATH", "CUDA_VISIBLE_DEVICES", "MAKEFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
    )


def lines(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(set(f) == {"name", "state", "seconds", "facts", "reason"} for f in found)
    return {line["name"]: line for line in found}


def test_a_bare_interpreter_rehearses_the_checks_of_a_gpu(bare: str) -> None:
    absent = f"import importlib.util as u; print([n for n in {NOT_THERE} if u.find_spec(n)])"
    assert call(bare, "-c", absent).stdout == "[]\n"
    works = (
        *("machine", "clock_against_wall", "inference_bf16", "profile_kernels"),
        *("streaming", "training", "out_of_memory"),
    )
    reasons = {
        "inference_nf4": "bitsandbytes",
        "streaming_nf4": "bitsandbytes",
        "engine_vllm": "vllm is not installed",
        "nvtx_ranges": "only a GPU can show it",
        "sweep": "hydra is not installed",
    }
    done = call(bare, "-m", "testing.gpu", "--device", "cpu", *works, *reasons)
    found = lines(done)
    assert {name: found[name]["reason"] for name in works} == dict.fromkeys(works), done.stderr
    assert all(found[name]["state"] == "ok" and found[name]["facts"] for name in works)
    assert found["out_of_memory"]["facts"]["outcome"] == "oom_host"
    assert all(found[name]["state"] == "skipped" for name in reasons)
    assert all(said in found[name]["reason"] for name, said in reasons.items())
    assert done.returncode == 0


def test_without_a_gpu_it_says_so_and_succeeds(bare: str) -> None:
    done = call("make", "--no-print-directory", "test-gpu", f"PYTHON={bare}", "ARGS=")
    assert done.returncode == 0, done.stderr
    (line,) = lines(done).values()
    assert (line["name"], line["state"]) == ("gpu", "skipped")
    assert line["reason"].startswith("no GPU: ")


def test_a_check_that_does_not_exist_is_not_passed_over() -> None:
    done = call(sys.executable, "-m", "testing.gpu", "--device", "cpu", "clok")
    assert done.returncode == 2
    assert "clok" in done.stderr


@pytest.mark.parametrize(
    ("raised", "state", "reason"),
    [
        (Skip("no compiler"), "skipped", "no compiler"),
        (Failure("two clocks differ"), "failed", "two clocks differ"),
        (KeyError("busy"), "failed", "KeyError: 'busy'"),
    ],
)
def test_how_a_check_ends(
    raised: Exception,
    state: str,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def check(bench: Bench) -> dict[str, Any]:
        raise raised

    with Bench("cpu", (), tmp_path, 60.0) as bench:
        assert run(check, bench) == state
    assert json.loads(capsys.readouterr().out)["reason"] == reason


def test_what_there_is_no_time_for_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Bench("cpu", (), tmp_path, 0.0) as bench:
        assert run(lambda bench: {}, bench) == "skipped"
    assert "is over" in json.loads(capsys.readouterr().out)["reason"]


def test_what_a_measured_process_imports_of_ours_needs_the_standard_library_alone() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import orchestrator.isolate.forkserver_main
from orchestrator.measure.registry import TASKS, find_task
for name in TASKS.names():
    find_task(name)
found = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(found - sys.stdlib_module_names - {{"__main__", "orchestrator"}}))
"""
    done = call(sys.executable, "-I", "-S", "-c", program)
    assert done.stdout == "[]\n", done.stderr
