"""Whole sweeps on simulated GPUs through Ray: pinned by UUID, one attempt a GPU, judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport
from orchestrator.record import open_store
from orchestrator.telemetry.simulate.library import environment
from orchestrator.telemetry.simulate.scenario import scenario_of

# A busy machine loses cores to its neighbours: its own state is no subject here, the GPUs' is.
HOST_RULES = ("steal", "cgroup_throttling", "swap")
HOST_IS_NOT_JUDGED = tuple(f"verdict.rules.{rule}.state=off" for rule in HOST_RULES)


def sweep(
    scenario: dict[str, Any], cache: Path, folder: Path, *overrides: str
) -> tuple[subprocess.CompletedProcess[str], list[AttemptReport]]:
    """Run ``python -m orchestrator`` under the scenario; every attempt it recorded."""
    file = folder / "scenario.json"
    file.write_text(json.dumps(scenario))
    added = environment(file, folder, cache=cache)
    root = folder / "mlruns"
    common = ["task=noop", "resources.gpus=1", "resources.cpus=1", f"tracking.root={root}"]
    common += HOST_IS_NOT_JUDGED
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *common, *overrides],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **added, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=240,
    )
    store = open_store(SimpleNamespace(kind="embedded", root=str(root), uri=None))  # type: ignore[arg-type]
    reports = [
        store.load(attempt.run_id)
        for attempts in store.attempts(None).values()
        for attempt in attempts
    ]
    return done, reports


@pytest.mark.long
def test_no_two_attempts_ever_share_a_gpu(library_cache: Path, tmp_path: Path) -> None:
    scenario = {
        "devices": [{"model": "h100", "count": 2}, {"model": "a100", "count": 2}],
        "cuda_order": [2, 3, 0, 1],
    }
    uuids = scenario_of(scenario, "scenario").uuids
    done, reports = sweep(
        scenario, library_cache, tmp_path, "task.value=range(0,8)", "task.sleep_s=0.4"
    )
    assert done.returncode == 0, done.stderr
    assert len(reports) == 8
    held: dict[str, list[tuple[int, int]]] = {}
    for report in reports:
        assert report.slot is not None
        (uuid,) = report.slot.gpu_uuids
        assert uuid in uuids
        assert report.slot.cuda_visible_devices == uuid, "a position means another GPU to CUDA"
        assert report.facts["simulated"] is True
        assert report.facts["hardware"]["gpus"][0]["uuid"] == uuid
        (body,) = report.phases
        assert body.end_ns is not None
        held.setdefault(uuid, []).append((body.begin_ns, body.end_ns))
    assert len(held) > 1, "attempts ran on several GPUs at once"
    for windows in held.values():
        for (_, end), (begin, _) in pairwise(sorted(windows)):
            assert end <= begin, "two attempts held one GPU at a time"


def test_a_hot_gpu_and_one_that_is_not_free_refuse_what_runs_on_them(
    library_cache: Path, tmp_path: Path
) -> None:
    hot = {"reasons": ["hw_thermal_slowdown"], "sm_clock_mhz": 1000}
    full = {"memory_used_bytes": 6 * 2**30}
    scenario = {
        "devices": [
            {"model": "h100", "uuid": "GPU-hot", "steps": hot},
            {"model": "h100", "uuid": "GPU-full", "steps": full},
        ]
    }
    done, reports = sweep(
        scenario,
        library_cache,
        tmp_path,
        *("task.value=1,2", "task.sleep_s=0.8"),
        *("verdict.retries=1", "verdict.cooldown_s=0.1", "verdict.memory_wait_s=0.2"),
    )
    assert done.returncode == 1
    assert [r.outcome.value for r in reports] == ["invalid"] * 4
    assert sorted(r.number for r in reports) == [1, 1, 2, 2]
    # Whatever was tried again where: two are submitted at once, so each GPU has had one.
    assert {r.slot.gpu_uuids for r in reports if r.slot} == {("GPU-hot",), ("GPU-full",)}
    for report in reports:
        assert report.slot is not None
        assert report.verdict.state == "invalid"
        assert report.facts["simulated"] is True
        assert report.facts["hardware_fingerprint"].startswith("simulated-1xh100")
        broken = {r.rule for r in report.verdict.rules if r.state == "invalid"}
        if report.slot.gpu_uuids == ("GPU-hot",):
            assert {"thermal_slowdown", "sm_clock"} <= broken
            assert "clocks were cut for heat" in (report.reason or "")
        else:
            assert broken == {"memory_before"}
            assert report.phases == []
            assert report.metrics == {}
            assert "not begun: 6.0 GiB" in (report.reason or "")
    assert "not begun: 6.0 GiB" in done.stderr
