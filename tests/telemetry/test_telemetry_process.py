"""Telling the measured process on a GPU from others, on the host and in a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from orchestrator.telemetry.nvml import ProcessMemory
from orchestrator.telemetry.process import belongs_to, split

OURS = ProcessMemory(100, 5_000)
CHILD = ProcessMemory(101, 2_000)
OTHER = ProcessMemory(999, 7_000)
DISPLAY = ProcessMemory(7, 300, compute=False)


def is_ours(pid: int) -> bool:
    return pid in (100, 101)


def test_own_group_foreign_and_display_are_told_apart() -> None:
    found = split([OURS, CHILD, OTHER, DISPLAY], is_ours, host_namespace=True)
    assert (found.own_bytes, found.foreign, found.display) == (7_000, 1, 1)


def test_a_server_in_a_session_of_its_own_belongs_to_who_started_it() -> None:
    starts = (
        "import subprocess\n"
        "server = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print(server.pid, flush=True)\n"
        "server.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starts], stdout=subprocess.PIPE, start_new_session=True
    ) as measured:
        assert measured.stdout is not None
        server = int(measured.stdout.readline())
        try:
            assert belongs_to(measured.pid, measured.pid)
            assert belongs_to(server, measured.pid)
            assert not belongs_to(os.getpid(), measured.pid)
        finally:
            os.kill(server, signal.SIGKILL)
    assert not belongs_to(server, measured.pid)


def test_process_not_yet_on_the_gpu_has_no_figure_and_no_accusation() -> None:
    found = split([], is_ours, host_namespace=True)
    assert (found.own_bytes, found.foreign, found.reason) == (None, 0, None)


def test_memory_that_the_driver_does_not_tell_is_none_with_a_reason() -> None:
    found = split([ProcessMemory(100, None)], is_ours, host_namespace=True)
    assert found.own_bytes is None
    assert found.reason is not None


def test_in_a_container_the_newcomer_is_ours_and_who_was_there_before_is_not() -> None:
    found = split([OTHER, OURS], lambda pid: False, host_namespace=False, baseline=frozenset({999}))
    assert (found.own_bytes, found.foreign) == (5_000, 1)


def test_in_a_container_a_second_newcomer_is_foreign_and_hides_our_figure() -> None:
    found = split([OTHER, OURS], lambda pid: False, host_namespace=False)
    assert (found.own_bytes, found.foreign) == (None, 1)
    assert found.reason is not None
