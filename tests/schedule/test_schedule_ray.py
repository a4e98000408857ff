"""The driver on a real local Ray: slots, retries, cancelling, and what it leaves behind."""

from __future__ import annotations

import contextlib
import errno
import inspect
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.attempt import Outcome, PlannedAttempt, Resources, Slot
from orchestrator.errors import ClusterError
from orchestrator.plan.schema import ClusterConfig, TelemetryConfig
from orchestrator.schedule.cluster.ray import connection
from orchestrator.schedule.cluster.ray.cluster import PendingCluster, translate
from orchestrator.schedule.cluster.ray.token import TOKEN
from orchestrator.schedule.policy import Limits
from testing.waiting import PATIENCE_S, until

ROOT = Path(__file__).resolve().parents[2]
TWO_CORES = len(os.sched_getaffinity(0)) >= 2


def test_trials_run_on_disjoint_cores(kit: Any, ray_cluster: Any) -> None:
    held: list[tuple[str, float, Slot]] = []
    seen = kit.Seen(on_started=lambda spec, slot: held.append((spec.attempt_id, 0.0, slot)))
    trials = [kit.trial(i, sleep_s=0.2) for i in range(8)]
    run = kit.sweep(trials, ray_cluster, seen=seen)
    assert run.result.outcomes == {"ok": 8}, [r.reason for r in run.recorded.reports]
    assert {r.metrics["value"].value for r in run.recorded.reports} == set(range(8))
    assert all(len(slot.cpus) == 1 for _, _, slot in held)
    if TWO_CORES:
        assert len({slot.cpus for _, _, slot in held}) == 2, "both slots were used"
    # No two attempts on one core at a time, by the children's own clocks.
    for one in run.recorded.reports:
        for other in run.recorded.reports:
            if one is not other and set(one.slot.cpus) & set(other.slot.cpus):
                (a,), (b,) = one.phases, other.phases
                assert a.end_ns <= b.begin_ns or b.end_ns <= a.begin_ns


def test_a_worker_serves_many_attempts(kit: Any, ray_cluster: Any) -> None:
    """Ray's default, a new worker per task, would cost each attempt a new fork server."""
    supervisors = set()

    def note(spec: PlannedAttempt, slot: Slot) -> None:
        supervisors.update(p.pid for p in _ray_workers())

    run = kit.sweep([kit.trial(i) for i in range(12)], ray_cluster, seen=kit.Seen(on_started=note))
    assert run.result.outcomes == {"ok": 12}
    assert len(supervisors) <= 4


@pytest.mark.skipif(not TWO_CORES, reason="a whole node is one core here")
def test_a_whole_node_takes_every_core(kit: Any, ray_cluster: Any) -> None:
    run = kit.sweep([kit.trial(1, resources=Resources())], ray_cluster)
    (report,) = run.recorded.reports
    assert len(report.slot.cpus) == 2


def test_telemetry_watches(kit: Any, ray_cluster: Any) -> None:
    run = kit.sweep([kit.trial(1, sleep_s=0.3)], ray_cluster, telemetry=TelemetryConfig())
    (report,) = run.recorded.reports
    assert report.outcome is Outcome.OK
    assert report.telemetry
    assert "telemetry_error" not in report.facts


def test_what_is_measured_does_not_give_way_to_other_processes(kit: Any, ray_cluster: Any) -> None:
    """Ray's workers do, and the measured process inherits it from its supervisor."""
    priorities = []

    def note(spec: PlannedAttempt, slot: Slot) -> None:
        priorities.append(_busy_worker(spec).nice())

    trial = kit.trial(1, sleep_s=1.0)
    run = kit.sweep([trial], ray_cluster, seen=kit.Seen(on_started=note))
    assert run.recorded.outcomes == {"ok": 1}
    assert priorities == [psutil.Process().nice()]


def test_a_task_that_fails_is_one_final_row(kit: Any, ray_cluster: Any) -> None:
    trial = kit.trial(1, sleep_s="not a number")
    run = kit.sweep([trial, kit.trial(2)], ray_cluster)
    assert run.recorded.outcomes == {"error": 1, "ok": 1}
    (report,) = run.recorded.by_hash[trial.hash]
    assert report.traceback is not None


def test_a_killed_supervisor_is_lost_and_run_again(kit: Any, ray_cluster: Any) -> None:
    killed = []

    def kill_first(spec: PlannedAttempt, slot: Slot) -> None:
        if not killed:
            worker = _busy_worker(spec)
            killed.append(worker.pid)
            worker.kill()

    trials = [kit.trial(i, sleep_s=1.0) for i in range(3)]
    run = kit.sweep(trials, ray_cluster, seen=kit.Seen(on_started=kill_first))
    assert run.recorded.outcomes == {"ok": 3, "lost": 1}
    (lost,) = [r for r in run.recorded.reports if r.outcome is Outcome.LOST]
    assert lost.reason == "its supervisor was killed"
    assert lost.slot is not None
    assert [r.number for r in run.recorded.by_hash[lost.config_hash]] == [1, 2]
    assert set(run.result.final.values()) == {"ok"}


def test_a_stop_ends_attempts_with_what_they_have(kit: Any, ray_cluster: Any) -> None:
    stop = threading.Event()
    seen = kit.Seen()
    seen.phase = lambda spec, name: stop.set()
    run = kit.sweep(
        [kit.trial(i, sleep_s=3600.0) for i in range(6)],
        ray_cluster,
        seen=seen,
        stop=stop,
        # However long a busy machine takes over it: who is not done by then is killed without one.
        limits=Limits(stop_grace_s=60.0),
    )
    assert run.result.interrupted
    assert set(run.recorded.outcomes) == {"cancelled"}
    assert run.result.unmade + len(run.recorded.reports) == 6
    partial = [r for r in run.recorded.reports if r.phases]
    assert partial, "the report of at least the one that had begun its body"
    # The slots are free again, and work.
    assert kit.sweep([kit.trial(9)], ray_cluster).result.outcomes == {"ok": 1}


def test_what_no_node_has_is_refused(kit: Any, ray_cluster: Any) -> None:
    trial = kit.trial(1, resources=Resources(gpus=8, cpus=1))
    with pytest.raises(ClusterError, match=r"no node has 8 GPUs.*The largest node .* has 0 GPUs"):
        kit.sweep([trial], ray_cluster)


def test_every_error_of_ray_has_an_outcome() -> None:
    from ray import exceptions

    kinds = [
        kind
        for _, kind in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(kind, exceptions.RayError)
    ]
    assert len(kinds) > 20
    for kind in kinds:
        error = kind.__new__(kind)
        try:
            str(error)
        except Exception:  # not built by its constructor; its class is what is looked at
            error = type(kind.__name__, (kind,), {"__str__": lambda self: "words"}).__new__(
                type(kind.__name__, (kind,), {"__str__": lambda self: "words"})
            )
        outcome, reason = translate(error)
        assert outcome in (Outcome.LOST, Outcome.ERROR, Outcome.OOM_HOST, Outcome.CANCELLED)
        assert reason
        assert "\n" not in reason
    assert translate(ValueError("pickle"))[0] is Outcome.ERROR


@pytest.mark.parametrize("failures", [1, 2])
def test_a_process_that_did_not_start_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """As one of Ray's did on a busy machine, whose ``execve`` failed with EFAULT."""
    started: list[bool] = []

    def start(settings: ClusterConfig, stack: contextlib.ExitStack) -> None:
        started.append(True)
        stack.callback(started.pop)
        failed.append(OSError(errno.EFAULT, "Bad address"))
        if len(failed) <= failures:
            raise failed[-1]

    failed: list[OSError] = []
    monkeypatch.setattr(connection, "_start_local", start)
    session = connection.RayConnection(ClusterConfig())
    if failures == 1:
        assert session.wait(PATIENCE_S)
        assert started == [True], "what the first try had started has ended"
    else:
        with pytest.raises(ClusterError, match=r"Ray cannot be started: .*Bad address"):
            session.wait(PATIENCE_S)
    session.close()
    assert started == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray head answers"),
        ("nonsense", "neither auto nor host:port"),
        ("ray://somewhere:10001", "cannot stream"),
    ],
)
def test_an_address_where_nothing_is(address: str, said: str) -> None:
    with (
        PendingCluster(ClusterConfig(kind="ray", address=address)) as pending,
        pytest.raises(ClusterError, match=said) as refused,
    ):
        pending.ready()
    assert f"cluster.address={address}" in str(refused.value)


def test_another_driver_joins_by_address(kit: Any, ray_cluster: Any, tmp_path: Path) -> None:
    """As on a real cluster: from another directory, the code as a runtime environment."""
    import ray

    address = ray.get_runtime_context().gcs_address
    script = tmp_path / "join.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, json, threading
            sys.path.insert(0, {str(ROOT)!r})
            from types import SimpleNamespace
            from orchestrator.attempt import Resources
            from orchestrator.plan.schema import ClusterConfig, Settings, TelemetryConfig
            from orchestrator.attempt import Trial
            from orchestrator.schedule.driver import run_sweep
            from orchestrator.attempt import PlannedAttempt

            class Port:
                reports = []
                def finish(self, report, trial): self.reports.append(report)
                def __getattr__(self, name): return lambda *arguments: None

            identity = {kit.trial(5).identity!r}
            trial = Trial("f" * 64, identity, resources=Resources(cpus=1), timeout_s=60)
            settings = Settings(
                cluster=ClusterConfig(kind="ray", address={address!r}),
                telemetry=TelemetryConfig(enabled=False),
            )
            plan = SimpleNamespace(sweep="joined", settings=settings, trials=())
            port = Port()
            run_sweep(plan, [PlannedAttempt(trial, 1)], recording=port, view=Port(), seed=0,
                      stop=threading.Event())
            report = port.reports[0]
            print(json.dumps([report.outcome.value, report.reason, report.facts.get("pid")]))
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        # A local cluster's token is in its own driver's memory alone.
        env={**os.environ, TOKEN: connection._SMALL_BOX[TOKEN]},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    outcome, reason, _ = json.loads(done.stdout)
    assert (outcome, reason) == ("ok", None), done.stderr
    assert done.stderr == ""


def _ray_workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::") or "ray::" in "".join(process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _busy_worker(spec: PlannedAttempt) -> psutil.Process:
    """The worker process that supervises ``spec``: Ray names it after its task."""

    def busy() -> psutil.Process | None:
        for process in _ray_workers():
            with contextlib.suppress(psutil.Error):
                if f"attempt {spec.trial.hash[:12]}" in " ".join(process.cmdline()):
                    return process
        return None

    found = until(busy)
    assert found is not None
    return found
