"""The whole room on real processes: progress, slot, cancel, interrupts, restarts, telemetry."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.attempt import AttemptReport, Observations, Outcome, Slot, Verdict
from orchestrator.isolate.isolation import Isolation
from orchestrator.isolate.ledger import Progress
from orchestrator.measure.metric import MetricSpec, Phase, Samples, Value
from orchestrator.report.analyse.compare import compare

Probe = Callable[..., AttemptReport]


pytestmark = pytest.mark.usefixtures("own_temporary")


def test_an_attempt_tells_what_happens_and_reports_once(isolation: Isolation, h: Any) -> None:
    spec = h.noop(value=42, number=3, sweep="quant")
    *progress, report = isolation.run(spec, h.slot)
    assert [(p.kind, p.name) for p in progress] == [("started", ""), ("phase", "body")]
    assert all(isinstance(p, Progress) for p in progress)
    assert isinstance(report, AttemptReport)
    assert report.outcome is Outcome.OK
    assert report.reason is None
    assert report.metrics["value"] == Value("value", "1", 42.0)
    assert report.metrics["process_memory_bytes"].value > 1e6
    assert (report.attempt_id, report.number, report.sweep) == (spec.attempt_id, 3, "quant")
    assert report.slot == h.slot
    assert report.artifacts == {"log.txt": b""}
    assert report.started_at <= report.ended_at
    assert report.duration_s > 0
    assert report.verdict.state == "unverified"
    assert AttemptReport.from_json(report.to_json()).metrics == report.metrics
    (phase,) = report.phases
    assert phase.begin_ns < phase.end_ns < time.perf_counter_ns()


def test_one_warm_server_forks_a_new_process_each_time(isolation: Isolation, h: Any) -> None:
    facts = [h.last(isolation, h.noop()).facts["isolate"] for _ in range(3)]
    assert len({f["server_pid"] for f in facts}) == 1
    assert len({f["pid"] for f in facts}) == 3
    assert all(h.gone(f["pid"]) for f in facts)
    assert facts[0]["server_threads"] == 1


def test_the_child_is_bound_to_its_slot(probe: Probe, h: Any) -> None:
    source = textwrap.dedent(
        """
        import resource
        files = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
        recorder.fact("sockets", [name for name in files if "socket:" in name])
        recorder.fact("cores", sorted(os.sched_getaffinity(0)))
        recorder.fact("cuda", os.environ.get("CUDA_VISIBLE_DEVICES"))
        recorder.fact("omp", os.environ.get("OMP_NUM_THREADS"))
        recorder.fact("stdin", sys.stdin.read() + os.readlink("/proc/self/fd/0"))
        recorder.fact("session", os.getsid(0) == os.getpid())
        recorder.fact("core_dump", resource.getrlimit(resource.RLIMIT_CORE))
        recorder.fact("temporary", tempfile.gettempdir())
        recorder.fact("gc", gc.isenabled())
        """
    )
    report = probe(source, Slot("n", "h", (h.core,), ("GPU-1",), "GPU-1"), threads=3)
    assert report.reason is None
    assert report.facts["cores"] == [h.core]
    assert report.facts["cuda"] == "GPU-1"
    assert report.facts["omp"] == "3"
    assert report.facts["stdin"] == "/dev/null"
    assert report.facts["session"]
    assert report.facts["core_dump"] == [0, 0]
    assert report.facts["gc"]
    assert report.facts["sockets"] == [], "the control channel must not reach the child"
    assert not Path(report.facts["temporary"]).exists()


def test_without_gpus_none_is_visible(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    report = probe("recorder.fact('cuda', os.environ['CUDA_VISIBLE_DEVICES'])")
    assert report.facts["cuda"] == ""


@pytest.mark.parametrize("usable", [True, False])
def test_cores_that_may_not_be_used_are_an_error(
    isolation: Isolation, h: Any, usable: bool
) -> None:
    # Next to a core that may be used, too: the kernel would leave out the other in silence.
    cores = (h.core, 999) if usable else (999,)
    report = h.last(isolation, h.noop(), Slot("n", "h", cores))
    assert report.outcome is Outcome.ERROR
    assert report.reason.startswith("cannot take the slot: cores 999 may not be used here")
    assert "again" in report.reason


def test_seeds_make_attempts_repeat(probe: Probe) -> None:
    source = "recorder.value('x', '1', random.random())"
    values = [probe(source, seed=seed).metrics["x"] for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_samples_and_artifacts_come_back(probe: Probe) -> None:
    report = probe(
        "recorder.samples('t_s', 's', [9.0], role='warmup')\n"
        "recorder.samples('t_s', 's', [float(i) for i in range(200_000)])\n"
        "recorder.stop('t_s', 'max_repetitions')\n"
        "recorder.artifact('sub/trace.json').write_text('{}')\n"
        "recorder.artifact('never.bin')\n"
        "print('to the log')\n"
    )
    assert report.outcome is Outcome.OK
    series = report.metrics["t_s"]
    assert isinstance(series, Samples)
    assert series.values == tuple(float(i) for i in range(200_000))
    assert (series.warmup, series.stop_reason) == ((9.0,), "max_repetitions")
    assert report.artifacts == {"sub/trace.json": b"{}", "log.txt": b"to the log\n"}
    assert set(report.facts["isolate"]["artifacts_missing"]) == {"never.bin"}


def test_numbers_of_numpy_and_torch_stay_numbers(probe: Probe) -> None:
    report = probe(
        "import numpy, torch\n"
        "recorder.fact('loss', {'at': numpy.int64(3), 'is': numpy.float32(0.5)})\n"
        "recorder.fact('curve', [numpy.arange(2), torch.tensor(1.5)])\n"
        "recorder.fact('where', __import__('pathlib').Path('/x'))\n"
        "recorder.fact('diverged', [1.0, numpy.float32('nan')])\n"
    )
    assert report.facts["loss"] == {"at": 3, "is": 0.5}
    assert report.facts["curve"] == [[0, 1], 1.5]
    assert report.facts["where"] == "/x"
    assert report.outcome is Outcome.ERROR
    assert report.reason.startswith("ValueError: diverged (is NaN or infinity in it?)")


def test_what_a_task_says_of_its_metrics_comes_with_its_report(probe: Probe) -> None:
    report = probe(
        "recorder.value('loudness', 'dB', 3.0)\n"
        "recorder.declare([MetricSpec('seen', '1', 'lower', exact=True)])\n"
        "recorder.value('seen', '1', 3.0)\n"
    )
    assert AttemptReport.from_json(json.loads(json.dumps(report.to_json()))).specs == {
        "loudness": MetricSpec("loudness", "dB", "higher", title="how loud"),
        "seen": MetricSpec("seen", "1", "lower", exact=True),
    }


def test_that_more_is_better_is_for_a_third_partys_task_to_say(probe: Probe) -> None:
    quiet, loud = (
        [probe(f"recorder.value('loudness', 'dB', {level + at / 100})") for at in range(3)]
        for level in (10, 20)
    )
    for report in (*quiet, *loud):
        report.verdict = Verdict("valid")
    (row,) = compare({"a": quiet}, {"b": loud}, metrics=["loudness"]).rows
    assert (row.judged.finding, row.spec.title) == ("improvement", "how loud")
    for report in (*quiet, *loud):
        report.specs.clear()
    (row,) = compare({"a": quiet}, {"b": loud}, metrics=["loudness"]).rows
    assert row.judged.finding == "inconclusive", "undeclared, dB has no good direction"


def test_a_tasks_own_memory_figure_is_kept(probe: Probe) -> None:
    report = probe("recorder.value('process_memory_bytes', 'bytes', 5)")
    assert report.metrics["process_memory_bytes"] == Value("process_memory_bytes", "bytes", 5.0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_shared_with_the_server_is_shared_out(probe: Probe) -> None:
    source = (
        "from orchestrator.measure import HostMemory\n"
        "block = bytearray(64 << 20); del block\n"
        "own = HostMemory()\n"
        "recorder.fact('pss', own.pss_bytes())\n"
        "recorder.fact('peak', own.peak_bytes())\n"
    )
    report = probe(source)
    seen = report.metrics["process_memory_bytes"]
    assert isinstance(seen, Value)
    assert report.facts["pss"] + (40 << 20) < seen.value, "the block it had is in it"
    assert seen.value < report.facts["peak"], "pages of the fork server count in part"


def test_on_cuda_host_memory_does_not_pass_for_the_devices(isolation: Isolation, h: Any) -> None:
    spec = h.noop()
    spec.trial.identity["device"]["kind"] = "cuda"
    report = h.last(isolation, spec)
    assert report.outcome is Outcome.OK, report.reason
    assert report.metrics["host_memory_bytes"].value > 1e6
    assert "process_memory_bytes" not in report.metrics


def test_a_clock_set_back_meanwhile_costs_no_time(
    isolation: Isolation, h: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(1_700_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    report = h.last(isolation, h.noop(sleep_s=0.05))
    assert report.started_at == 1_700_000_000
    assert report.ended_at == pytest.approx(report.started_at + report.duration_s)
    assert report.duration_s > 0.05


def test_secrets_reach_neither_child_nor_report(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_API_KEY", "planted-1234567")
    monkeypatch.setenv("HF_TOKEN", "hf_planted7654321")
    report = probe(
        "recorder.fact('planted', os.environ.get('PLANTED_API_KEY'))\n"
        "print('token', os.environ['HF_TOKEN'])\n"
        "raise ValueError('cannot open https://x:' + os.environ['HF_TOKEN'] + '@host')"
    )
    assert report.facts["planted"] is None
    everything = f"{report.to_json()} {report.artifacts}"
    assert "planted7654321" not in everything
    assert report.reason == "ValueError: cannot open https://x:********@host"


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_repository_s_own_code_never_sees_the_hub_s_token(
    probe: Probe, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted7654321")
    source = (
        "recorder.fact('token', os.environ.get('HF_TOKEN'))\n"
        "held = open('/proc/self/environ', 'rb').read()\n"
        "recorder.fact('held', b'planted' in held)"
    )
    for trusted in (False, True, False):
        report = probe(source, start=start, model={"trust_remote_code": trusted})
        assert report.outcome is Outcome.OK, report.reason
        assert (report.facts["token"] is None) is trusted
        assert report.facts["held"] is not trusted


def test_a_spawned_child_runs_the_same_code(probe: Probe, h: Any) -> None:
    source = (
        "recorder.fact('main', sys.argv[1])\n"
        "recorder.fact('cores', sorted(os.sched_getaffinity(0)))\n"
        "recorder.fact('session', os.getsid(0) == os.getpid())\n"
        "print('spawned')\n"
        "recorder.value('x', '1', random.random())"
    )
    spawned = probe(source, start="spawn", seed=5)
    assert spawned.outcome is Outcome.OK
    assert spawned.facts["main"] == "orchestrator.isolate.child"
    assert spawned.facts["cores"] == [h.core]
    assert spawned.facts["session"]
    assert spawned.facts["isolate"]["start"] == "spawn"
    assert spawned.artifacts["log.txt"] == b"spawned\n"
    again = probe(source, start="spawn", seed=5)
    assert again.metrics["x"] == spawned.metrics["x"]


def test_the_spec_says_how_to_start_unless_told(isolation: Isolation, h: Any) -> None:
    report = h.last(isolation, h.noop(start="spawn"))
    assert report.outcome is Outcome.OK
    assert report.facts["isolate"]["start"] == "spawn"


def test_torch_is_warm_threads_are_set_and_forking_is_safe(probe: Probe) -> None:
    source = (
        "import torch\n"
        "recorder.fact('threads', torch.get_num_threads())\n"
        "recorder.fact('sum', float(torch.ones(64, 64).matmul(torch.ones(64, 64)).sum()))\n"
        "recorder.value('x', '1', float(torch.rand(())))"
    )
    preload = ("torch", "transformers")
    first = probe(source, preload=preload, threads=1, seed=3)
    second = probe(source, preload=preload, threads=2, seed=3)
    assert first.outcome is second.outcome is Outcome.OK
    assert (first.facts["threads"], second.facts["threads"]) == (1, 2)
    assert first.facts["sum"] == 64.0**3
    assert first.metrics["x"] == second.metrics["x"]
    assert first.facts["isolate"]["server_threads"] == 1
    assert first.facts["isolate"]["server_pid"] == second.facts["isolate"]["server_pid"]


# -- cancel, interrupts ------------------------------------------------------------------------


def test_cancel_from_another_thread(isolation: Isolation, h: Any) -> None:
    run = isolation.run(h.noop(f"daemon_then_hang:{h.sleep_s}"), h.slot)
    for item in run:
        if isinstance(item, Progress) and item.kind == "phase":
            h.until(lambda: len(h.running_with(h.sleep_s)) == 2)
            threading.Thread(target=isolation.cancel).start()
    assert item.outcome is Outcome.CANCELLED
    assert item.reason == "cancelled"
    assert item.metrics["value"].value == 7
    assert h.running_with(h.sleep_s) == []
    assert h.directories() == set()
    assert h.last(isolation, h.noop()).outcome is Outcome.OK


def test_a_cancel_before_the_first_step_counts_and_an_idle_one_does_not(
    isolation: Isolation, h: Any
) -> None:
    isolation.cancel()
    assert h.last(isolation, h.noop()).outcome is Outcome.OK
    run = isolation.run(h.noop(sleep_s=60), h.slot)
    isolation.cancel()
    assert list(run)[-1].outcome is Outcome.CANCELLED


def test_ctrl_c_passes_through_and_leaves_nothing(isolation: Isolation, h: Any) -> None:
    watch = RecordingWatch()

    def press() -> None:
        h.until(lambda: len(h.running_with(h.sleep_s)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        list(isolation.run(h.noop(f"daemon_then_hang:{h.sleep_s}"), h.slot, watch))
    assert h.gone(watch.pid)
    assert h.running_with(h.sleep_s) == []
    assert watch.calls == ["start", "attach", "finish"]
    assert h.directories() == set()
    assert h.last(isolation, h.noop()).outcome is Outcome.OK


def test_closing_the_iterator_kills(isolation: Isolation, h: Any) -> None:
    watch = RecordingWatch()
    run = isolation.run(h.noop("hang"), h.slot, watch)
    next(run)
    assert not h.gone(watch.pid)
    run.close()
    assert h.gone(watch.pid)
    assert h.last(isolation, h.noop()).outcome is Outcome.OK


def test_one_attempt_at_a_time(isolation: Isolation, h: Any) -> None:
    run = isolation.run(h.noop(sleep_s=60), h.slot)
    next(run)
    with pytest.raises(RuntimeError, match="one attempt at a time"):
        isolation.run(h.noop(), h.slot)
    run.close()


# -- the server --------------------------------------------------------------------------------


def test_a_server_outlives_the_thread_that_started_it(h: Any) -> None:
    # The kernel's parent-death signal follows the thread, not the process.
    with Isolation(preload=()) as isolation:
        reports: list[AttemptReport] = []
        thread = threading.Thread(target=lambda: reports.append(h.last(isolation, h.noop())))
        thread.start()
        thread.join()
        reports.append(h.last(isolation, h.noop()))
        first, second = (r.facts["isolate"]["server_pid"] for r in reports)
        assert first == second


def test_a_server_killed_between_attempts_is_replaced(isolation: Isolation, h: Any) -> None:
    before = h.last(isolation, h.noop()).facts["isolate"]["server_pid"]
    os.kill(before, signal.SIGKILL)
    report = h.last(isolation, h.noop())
    assert report.outcome is Outcome.OK
    assert report.facts["isolate"]["server_pid"] != before


def test_a_server_killed_during_an_attempt_loses_only_that_one(
    isolation: Isolation, h: Any
) -> None:
    for item in isolation.run(h.noop(f"daemon_then_hang:{h.sleep_s}"), h.slot):
        if isinstance(item, Progress) and item.kind == "phase":
            h.until(lambda: len(h.running_with(h.sleep_s)) == 2)
            (server,) = [
                pid
                for pid in h.running_with("orchestrator.isolate.forkserver_main")
                if psutil.Process(pid).ppid() == os.getpid()
            ]
            os.kill(server, signal.SIGKILL)
    assert item.outcome is Outcome.LOST
    assert item.reason == "fork server killed by SIGKILL"
    assert item.metrics["value"].value == 7
    assert h.gone(item.facts["isolate"]["pid"])
    h.until(lambda: h.running_with(h.sleep_s) == [])
    assert h.last(isolation, h.noop()).outcome is Outcome.OK


def test_a_preload_that_cannot_be_imported_is_named(h: Any) -> None:
    with Isolation(preload=("no_such_module_anywhere",)) as isolation:
        for _ in range(2):
            report = h.last(isolation, h.noop())
            assert report.outcome is Outcome.ERROR
            assert report.reason == (
                "cannot import no_such_module_anywhere: ModuleNotFoundError: "
                "No module named 'no_such_module_anywhere'"
            )
            assert "Traceback" in report.traceback


def test_a_preload_that_kills_the_server_is_an_error(
    h: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly_preload.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Isolation(preload=("deadly_preload",)) as isolation:
        report = h.last(isolation, h.noop())
    assert report.outcome is Outcome.ERROR
    assert report.reason == "cannot start a process: fork server killed by SIGSEGV"


def test_a_preload_that_hangs_is_a_start_timeout(
    h: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_preload.py").write_text("import time; time.sleep(1000)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Isolation(preload=("slow_preload",)) as isolation:
        report = h.last(isolation, h.noop(start_timeout_s=0.3))
        assert report.outcome is Outcome.TIMEOUT
        assert report.reason == "did not start within 0.3 s"
        threading.Timer(0.2, isolation.cancel).start()
        assert h.last(isolation, h.noop()).outcome is Outcome.CANCELLED


def test_closing_ends_the_server_and_a_task_chooses_its_own(h: Any) -> None:
    isolation = Isolation()
    server = h.last(isolation, h.noop()).facts["isolate"]["server_pid"]
    assert not h.gone(server)
    isolation.close()
    assert h.gone(server)
    isolation.close()
    assert h.last(isolation, h.noop()).outcome is Outcome.OK, "a closed one starts again"
    isolation.close()


def test_an_unknown_task_is_an_error_not_an_exception(isolation: Isolation, h: Any) -> None:
    report = h.last(isolation, h.spec({"name": "nothing"}))
    assert report.outcome is Outcome.ERROR
    assert report.reason.startswith("task: unknown task 'nothing'. Known: ")


# -- telemetry ---------------------------------------------------------------------------------


class RecordingWatch:
    def __init__(self, broken: str = "") -> None:
        self.calls: list[str] = []
        self.phases: list[Phase] = []
        self.pid = 0
        self._broken = broken

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self._broken:
            raise OSError("the sensor fell off")

    def start(self, slot: Slot) -> None:
        self._call("start")

    def attach(self, pid: int) -> None:
        self.pid = pid
        self._call("attach")

    def finish(self, phases: list[Phase]) -> Observations:
        self.phases = phases
        self._call("finish")
        power = Value("body.power_w", "W", 50.0)
        return Observations({"body.power_w": power}, {"telemetry.parquet": b"x"}, {"hardware": 1})


def test_a_watch_is_told_everything_and_its_result_is_kept(isolation: Isolation, h: Any) -> None:
    watch = RecordingWatch()
    report = h.last(isolation, h.noop(), watch=watch)
    assert watch.calls == ["start", "attach", "finish"]
    assert watch.pid == report.facts["isolate"]["pid"]
    assert watch.phases == report.phases
    assert report.telemetry["body.power_w"].value == 50.0
    assert report.artifacts["telemetry.parquet"] == b"x"
    assert report.facts["hardware"] == 1
    assert "telemetry_error" not in report.facts


@pytest.mark.parametrize("broken", ["start", "attach", "finish"])
def test_a_broken_watch_spoils_nothing(isolation: Isolation, h: Any, broken: str) -> None:
    watch = RecordingWatch(broken)
    report = h.last(isolation, h.noop(), watch=watch)
    assert report.outcome is Outcome.OK
    assert report.facts["telemetry_error"] == "OSError: the sensor fell off"
    assert watch.calls == ["start", "attach", "finish"]
