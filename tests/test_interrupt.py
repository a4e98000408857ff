"""Stopping a sweep: the first signal asks, the second does not wait; a request from elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from orchestrator.commands.interrupt import Published, stop_on_signals
from orchestrator.record import driver_id
from orchestrator.record.drivers import DriverFile, read_drivers, request_cancel


class View:
    """Remembers what a person would have read."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def test_the_first_signal_sets_the_event_and_says_so() -> None:
    view = View()
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals(lambda: None, view.message) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
    assert signal.getsignal(signal.SIGINT) is before
    assert any("stopping" in line for line in view.said)


def test_the_second_signal_is_out_at_once() -> None:
    code = """
import os, signal, time
from orchestrator.commands.interrupt import stop_on_signals
with stop_on_signals(lambda: print("emergency", flush=True), lambda text: None):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stdout == "emergency\n"


def test_an_alarm_of_rays_signal_handler_does_not_abort_a_clean_stop() -> None:
    """C++ sets it before Python hears of the signal; it would end the process with SIGABRT."""
    code = """
import os, signal
from orchestrator.commands.interrupt import stop_on_signals
with stop_on_signals(lambda: None, lambda text: None) as stop:
    signal.alarm(60)
    os.kill(os.getpid(), signal.SIGTERM)
    stop.wait()
    print(signal.alarm(0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n"


def test_another_terminal_sees_a_driver_and_stops_it(tmp_path: Path) -> None:
    stop = threading.Event()
    view = View()
    file = DriverFile(tmp_path, driver_id(), "quant", total=8, cached=2)
    published = Published(view, file, {}, stop)
    try:
        (state,) = read_drivers(tmp_path)
        assert (state.sweep, state.total, state.cached, state.alive) == ("quant", 8, 2, True)
        assert request_cancel(tmp_path, "other") == []
        assert [s.driver_id for s in request_cancel(tmp_path, "quant")] == [driver_id()]
        assert stop.wait(10)
    finally:
        published.close()
    assert read_drivers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_dead_driver_is_said_to_be_dead(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from orchestrator.record.drivers import DriverFile
DriverFile(Path({str(tmp_path)!r}), "gone", "quant", 1, 0).publish({{}}, [])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    (state,) = read_drivers(tmp_path)
    assert state.alive is False
    assert request_cancel(tmp_path, "quant") == []


def test_an_unreadable_file_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text("{")
    DriverFile(tmp_path, "me", "quant", 1, 0).publish({}, [])
    assert [state.driver_id for state in read_drivers(tmp_path)] == ["me"]
