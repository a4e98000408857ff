"""Every way a measured process can end, really done to real processes.

After each: the outcome has its name, what was measured before is kept, no process of the attempt
and no file of it is left, and the next attempt on the same server is unharmed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.attempt import AttemptReport, Outcome, PlannedAttempt, Resources, Slot, Trial
from orchestrator.isolate.directory import LOG_HALF_BYTES, PREFIX
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure.metric import Value

SLOT = Slot(node_id="node", host="host", cpus=(min(os.sched_getaffinity(0)),))


@pytest.fixture(scope="module")
def isolation() -> Iterator[Isolation]:
    with Isolation(preload=()) as made:
        yield made


def attempt(
    isolation: Isolation,
    fault: str,
    timeout_s: float = 1800.0,
    memory_limit_bytes: int | None = None,
) -> AttemptReport:
    identity = {
        "schema": 1,
        "task": {"name": "noop", "value": 7, "sleep_s": 0.0, "fault": fault},
        "device": {"kind": "cpu", "threads": None},
        "seed": 0,
    }
    resources = Resources(memory_bytes=memory_limit_bytes)
    trial = Trial("0" * 64, identity, resources=resources, timeout_s=timeout_s)
    planned = PlannedAttempt(trial, attempt_id=f"fault-{time.monotonic_ns()}")
    *_, report = isolation.run(planned, SLOT)
    assert isinstance(report, AttemptReport)
    return report


def relatives() -> set[int]:
    """Fork servers of this process and whatever still bears their command line: forks do."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if (
                b"orchestrator.isolate.forkserver_main" in words
                and str(os.getpid()).encode() in words
            ):
                found.add(int(entry.name))
    return found


def sleepers(argument: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes().split(b"\0")[:2] == [b"sleep", argument.encode()]:
                found.append(entry.name)
    return found


def check_aftermath(isolation: Isolation, report: AttemptReport) -> None:
    facts = report.facts["isolate"]
    assert report.metrics["value"] == Value("value", "1", 7.0)
    assert report.metrics["process_memory_bytes"].value > 0
    assert report.phases[0].name == "body"
    assert "log.txt" in report.artifacts
    assert relatives() == {facts["server_pid"]}
    assert not [
        path
        for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/job.json")
        if report.attempt_id in path.read_text()
    ]
    following = attempt(isolation, "")
    assert following.outcome is Outcome.OK
    assert following.facts["isolate"]["server_pid"] == facts["server_pid"]


@pytest.mark.parametrize(
    ("fault", "outcome", "reason"),
    [
        ("raise:bad luck", Outcome.ERROR, "RuntimeError: bad luck"),
        ("infeasible:no such device", Outcome.INFEASIBLE, "no such device"),
        ("memory_error", Outcome.OOM_HOST, "MemoryError"),
        ("signal:SIGKILL", Outcome.CRASHED, "killed by SIGKILL"),
        ("signal:SIGTERM", Outcome.CRASHED, "killed by SIGTERM"),
        ("signal:SIGABRT", Outcome.CRASHED, "killed by SIGABRT"),
        ("segfault", Outcome.CRASHED, "killed by SIGSEGV"),
        ("exit:0", Outcome.CRASHED, "exited with status 0 without a result"),
        ("exit:3", Outcome.CRASHED, "exited with status 3 without a result"),
        ("sys_exit:4", Outcome.ERROR, "the task called sys.exit(4)"),
        ("fork_and_return", Outcome.OK, None),
    ],
)
def test_endings(isolation: Isolation, fault: str, outcome: Outcome, reason: str | None) -> None:
    report = attempt(isolation, fault)
    assert (report.outcome, report.reason) == (outcome, reason)
    check_aftermath(isolation, report)


@pytest.mark.parametrize("fault", ["hang", "hang_gil"])
def test_a_hang_is_ended_from_outside(isolation: Isolation, fault: str) -> None:
    report = attempt(isolation, fault, timeout_s=0.5)
    assert (report.outcome, report.reason) == (Outcome.TIMEOUT, "no result after 0.5 s")
    assert report.phases[0].end_ns is None
    check_aftermath(isolation, report)


def test_a_segmentation_fault_leaves_its_stack(isolation: Isolation) -> None:
    report = attempt(isolation, "segfault")
    assert report.traceback is not None
    assert "Segmentation fault" in report.traceback
    assert b"_faults.py" in report.artifacts["log.txt"]


def test_an_exceptions_traceback_is_kept_and_logged(isolation: Isolation) -> None:
    report = attempt(isolation, "raise:bad luck")
    assert report.traceback is not None
    assert report.traceback.startswith("Traceback")
    assert report.traceback.encode() in report.artifacts["log.txt"]


@pytest.mark.parametrize("fault", ["balloon", "balloon_in_child"])
def test_the_memory_limit_holds_for_the_whole_tree(isolation: Isolation, fault: str) -> None:
    limit = 300 << 20
    report = attempt(isolation, fault, memory_limit_bytes=limit)
    assert report.outcome is Outcome.OOM_HOST
    assert report.reason is not None
    assert report.reason.endswith("the memory limit is 0.29 GiB")
    peak = report.metrics["process_memory_bytes"]
    assert isinstance(peak, Value)
    assert limit < peak.value < 4 << 30
    check_aftermath(isolation, report)


def test_within_the_memory_limit_nothing_happens(isolation: Isolation) -> None:
    report = attempt(isolation, "", memory_limit_bytes=300 << 20)
    assert report.outcome is Outcome.OK


def test_what_is_no_result_is_an_error_and_what_came_before_is_kept(isolation: Isolation) -> None:
    report = attempt(isolation, "bad_result")
    assert report.outcome is Outcome.ERROR
    assert report.reason is not None
    assert report.reason.startswith("the result cannot be parsed: ")
    check_aftermath(isolation, report)


def test_a_fork_bombs_worth_of_processes_is_cleared_away(isolation: Isolation) -> None:
    report = attempt(isolation, "fork_bomb:200")
    assert report.outcome is Outcome.OK
    assert report.facts["isolate"]["strays"] == 200
    check_aftermath(isolation, report)


@pytest.mark.parametrize(
    ("fault", "outcome", "strays"),
    [("daemon", Outcome.OK, 1), ("daemon_then_hang", Outcome.TIMEOUT, 2)],
)
def test_daemons_do_not_outlive_the_attempt(
    isolation: Isolation, fault: str, outcome: Outcome, strays: int
) -> None:
    # Tells them from those of another run on this machine.
    sleep_s = f"86421{os.getpid()}"
    report = attempt(isolation, f"{fault}:{sleep_s}", timeout_s=0.5)
    assert report.outcome is outcome
    assert report.facts["isolate"]["strays"] == strays
    assert sleepers(sleep_s) == []
    check_aftermath(isolation, report)


def test_a_flood_of_output_is_capped_with_both_ends_kept(isolation: Isolation) -> None:
    report = attempt(isolation, "print:1000000000")
    assert report.outcome is Outcome.OK
    log = report.artifacts["log.txt"]
    assert log.startswith(b"first line of the output\n")
    assert log.endswith(b"last line of the output\n")
    assert len(log) < 2 * LOG_HALF_BYTES + 100
    assert b"bytes of output were not kept" in log
    check_aftermath(isolation, report)
