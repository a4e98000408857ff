"""Whole sweeps on simulated GPUs through Ray: pinning by UUID, and never two on one GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from orchestrator.telemetry.simulate.library import environment

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="the simulated NVML needs a C compiler"
)

SWEEP = """
import json, sys, threading
sys.path.insert(0, {root!r})
from types import SimpleNamespace
from orchestrator.attempt import Resources
from orchestrator.plan.schema import ClusterConfig, Settings
from orchestrator.attempt import Trial
from orchestrator.schedule.driver import run_sweep
from orchestrator.attempt import PlannedAttempt

class Port:
    reports = []
    def finish(self, report, trial): self.reports.append(report)
    def __getattr__(self, name): return lambda *arguments: None

def trial(value, gpus):
    identity = {identity!r}
    identity["task"]["value"] = value
    resources = Resources(gpus=gpus, cpus=1)
    return Trial(f"{{value:064x}}", identity, resources=resources, timeout_s=60)

settings = Settings(cluster=ClusterConfig(cpus=2))
plan = SimpleNamespace(sweep="gpus", settings=settings, trials=())
port = Port()
todo = [PlannedAttempt(trial(*made), 1) for made in enumerate({gpus})]
run_sweep(plan, todo, recording=port, view=Port(),
          seed=0, stop=threading.Event())
print(json.dumps([
    [r.outcome.value, r.reason, list(r.slot.gpu_uuids), r.slot.cuda_visible_devices,
     [[p.begin_ns, p.end_ns] for p in r.phases], sorted(r.telemetry)]
    for r in port.reports
]))
"""


def run(
    kit: Any, tmp_path: Path, scenario: str, *, gpus: list[int], visible: str | None = None
) -> list[list[Any]]:
    folder = tmp_path / "nvml"
    folder.mkdir()
    variables = {**os.environ, **environment(scenario, folder)}
    variables["ORCHESTRATOR_LOCAL_DIR"] = str(tmp_path / "local")
    if visible is not None:
        variables["CUDA_VISIBLE_DEVICES"] = visible
    script = textwrap.dedent(SWEEP).format(
        root=str(ROOT), identity=kit.trial(0, sleep_s=0.3).identity, gpus=gpus
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=variables, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    reports: list[list[Any]] = json.loads(done.stdout)
    assert all(outcome in ("ok", "invalid") for outcome, *_ in reports), reports
    return reports


def test_each_attempt_owns_its_gpu(kit: Any, tmp_path: Path) -> None:
    reports = run(kit, tmp_path, "eight", gpus=[1, 1, 1, 1, 5])
    assert sorted(len(set(report[2])) for report in reports) == [1, 1, 1, 1, 5]
    for _, _, owned, visible, _, telemetry in reports:
        assert all(uuid.startswith("GPU-") for uuid in owned)
        assert visible == ",".join(owned), "by UUID: CUDA's own order of devices cannot matter"
        assert any("power" in name for name in telemetry)
    for index, one in enumerate(reports):
        for other in reports[index + 1 :]:
            if set(one[2]) & set(other[2]):
                ((a, b),), ((c, d),) = one[4], other[4]
                assert b <= c or d <= a, "two attempts on one GPU at a time"


@pytest.mark.long
def test_only_what_the_driver_may_see(kit: Any, tmp_path: Path) -> None:
    reports = run(kit, tmp_path, "eight", visible="5,2", gpus=[1, 1, 1])
    everything = run_devices(tmp_path, "eight")
    assert {uuid for report in reports for uuid in report[2]} <= {everything[5], everything[2]}


def test_slices_of_a_gpu(kit: Any, tmp_path: Path) -> None:
    reports = run(kit, tmp_path, "mig", gpus=[1, 1])
    assert all(report[2][0].startswith("MIG-") for report in reports)


def run_devices(tmp_path: Path, scenario: str) -> list[str]:
    """UUIDs in PCI order, as a process under the simulation sees them."""
    folder = tmp_path / "look"
    folder.mkdir()
    code = "from orchestrator.telemetry.device import devices; print(*[d.uuid for d in devices()])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment(scenario, folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()
