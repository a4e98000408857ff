"""``status`` and ``cancel``: the sweeps that run now, seen and stopped from another terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

from orchestrator.commands.output import echo, emit_json, say
from orchestrator.commands.selected import store_of
from orchestrator.errors import UsageError
from orchestrator.record.drivers import drivers_directory, read_drivers, request_cancel
from orchestrator.report.show.units import duration


def status_command(overrides: Sequence[str], as_json: bool) -> int:
    """One line per running sweep; stale files of dead drivers are said to be so."""
    states = read_drivers(drivers_directory(store_of(overrides).spool_root))
    if as_json:
        emit_json([{**asdict(state), "alive": state.alive} for state in states])
        return 0
    if not states:
        echo("no sweep is running")
    for state in states:
        done = sum(state.outcomes.values())
        # Another host's clock, or this one since it was set, may be behind.
        age = duration(max(time.time() - state.updated_at, 0.0))
        life = {True: "running", False: "dead (its next run reaps it)", None: f"on {state.host}"}
        ended = ", ".join(f"{count} {outcome}" for outcome, count in state.outcomes.items())
        echo(
            f"{state.sweep}: {life[state.alive]}, pid {state.pid}, {done}/{state.total} done"
            f"{f' ({ended})' if ended else ''}, {state.cached} cached, updated {age} ago"
        )
        for label in state.running:
            echo(f"  running {label}")
    return 0


def cancel_command(sweep: str, overrides: Sequence[str]) -> int:
    """Leave a request that the sweep's driver notices within about a second."""
    directory = drivers_directory(store_of(overrides).spool_root)
    asked = request_cancel(directory, sweep)
    if not asked:
        running = sorted({s.sweep for s in read_drivers(directory) if s.alive is not False})
        raise UsageError(
            f"no running sweep is called {sweep!r}",
            fix=f"Running: {', '.join(running)}" if running else "Nothing is running",
        )
    for state in asked:
        say(f"asked {state.sweep} (pid {state.pid} on {state.host}) to stop")
    return 0
