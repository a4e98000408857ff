"""Commands about running sweeps and the store: status, cancel, ui, sync, doctor."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.parser import emit_json
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.commands.findings import Finding


def _drivers_directory(overrides: Sequence[str]) -> Path:
    from orchestrator.plan import settings_of
    from orchestrator.record import open_store
    from orchestrator.record.drivers import drivers_directory

    return drivers_directory(open_store(settings_of(overrides).tracking).spool_root)


def status_command(overrides: Sequence[str], as_json: bool) -> int:
    """One line per running sweep; stale files of dead drivers are said to be so."""
    from orchestrator.record.drivers import read_drivers

    states = read_drivers(_drivers_directory(overrides))
    if as_json:
        emit_json([{**asdict(state), "alive": state.alive} for state in states])
        return 0
    if not states:
        click.echo("no sweep is running")
    for state in states:
        done = sum(state.outcomes.values())
        age_s = time.time() - state.updated_at
        life = {True: "running", False: "dead (its next run reaps it)", None: f"on {state.host}"}
        ended = ", ".join(f"{count} {outcome}" for outcome, count in state.outcomes.items())
        click.echo(
            f"{state.sweep}: {life[state.alive]}, pid {state.pid}, {done}/{state.total} done"
            f"{f' ({ended})' if ended else ''}, {state.cached} cached, updated {age_s:.0f} s ago"
        )
        for label in state.running:
            click.echo(f"  running {label}")
    return 0


def cancel_command(sweep: str, overrides: Sequence[str]) -> int:
    """Leave a request that the sweep's driver notices within about a second."""
    from orchestrator.record.drivers import read_drivers, request_cancel

    directory = _drivers_directory(overrides)
    asked = request_cancel(directory, sweep)
    if not asked:
        running = sorted({s.sweep for s in read_drivers(directory) if s.alive is not False})
        raise UsageError(
            f"no running sweep is called {sweep!r}",
            fix=f"Running: {', '.join(running)}" if running else "Nothing is running",
        )
    for state in asked:
        click.echo(f"asked {state.sweep} (pid {state.pid} on {state.host}) to stop", err=True)
    return 0


def ui_command(overrides: Sequence[str], host: str, port: int) -> int:
    """Replace this process by MLflow's server on the embedded store; print a server's address."""
    from orchestrator.plan import settings_of
    from orchestrator.record import ui_arguments

    tracking = settings_of(overrides).tracking
    if tracking.kind == "server":
        click.echo(tracking.uri)
        return 0
    port = _free_port(host, port)
    arguments, environment = ui_arguments(tracking, host, port)
    # Of its two faces the UI shows the one about agents first, and remembers what was chosen.
    click.echo(
        f"MLflow UI on http://{host}:{port} (choose Model training at the left; Ctrl-C ends it)",
        err=True,
    )
    sys.stderr.flush()
    executable = shutil.which("mlflow", path=str(Path(sys.executable).parent)) or "mlflow"
    os.execve(executable, [executable, *arguments], {**os.environ, **environment})


def _free_port(host: str, port: int) -> int:
    """``port`` if nothing holds it, else one that is free."""
    for candidate in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UsageError(f"cannot listen on {host}", fix="--host 127.0.0.1")


def sync_command(overrides: Sequence[str]) -> int:
    """Record what waits in the spool; 1 if a record had to be set aside."""
    from orchestrator.plan import settings_of
    from orchestrator.record import open_store, sync

    store = open_store(settings_of(overrides).tracking)
    result = sync(store, message=lambda text: click.echo(text, err=True))
    busy = f", {result.in_use} spools belong to running sweeps" if result.in_use else ""
    click.echo(f"{result.written} attempts recorded in {store.where}{busy}", err=True)
    return 1 if result.messages else 0


def doctor_command(overrides: Sequence[str], simulate: Path | None, as_json: bool) -> int:
    """Findings, one a line; exit 1 when one of them is a failure.

    With ``simulate`` the GPUs are a scenario's, and the verdict policy is tried on them for a few
    seconds as if they were being measured.
    """
    from orchestrator.commands.findings import examine
    from orchestrator.plan import settings_of

    settings = settings_of(overrides)
    if simulate is not None:
        from orchestrator.telemetry.simulate import activate

        activate(simulate)
    findings = examine(Path(settings.tracking.root))
    if simulate is not None:
        findings.extend(_rehearsed(asdict(settings.verdict)))
    if as_json:
        emit_json([asdict(finding) for finding in findings])
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False)
        styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
        for finding in findings:
            line = Text.assemble((f"{finding.level:<4} ", styles[finding.level]), finding.what)
            if finding.fix:
                line.append(f"  →  {finding.fix}", style="dim")
            console.print(line, soft_wrap=True)
    return 1 if any(finding.level == "fail" for finding in findings) else 0


def _rehearsed(verdict: dict[str, Any], seconds: float = 3.0) -> Iterator[Finding]:
    """What the verdict policy says of the GPUs here, one finding a rule that did not pass."""
    from orchestrator.commands.findings import Finding
    from orchestrator.telemetry.simulate import rehearse

    judged = rehearse(verdict, seconds=seconds).verdict
    level = {"valid": "ok", "invalid": "fail"}.get(judged.state, "warn")
    yield Finding(level, f"a measurement here would be {judged.state}")
    for rule in judged.rules:
        if rule.state in ("flagged", "invalid"):
            said = rule.reason or f"{rule.value}, limit {rule.limit}"
            level = "fail" if rule.state == "invalid" else "warn"
            yield Finding(level, f"{rule.rule}: {said}", f"verdict.rules.{rule.rule}.limit=…")
    unknown: dict[str, list[str]] = {}
    for rule in judged.rules:
        if rule.state == "unknown":
            unknown.setdefault(rule.reason or "no reason given", []).append(rule.rule)
    for reason, rules in unknown.items():
        yield Finding("warn", f"not to be checked: {', '.join(rules)}: {reason}")
