"""``report SWEEP``: the report of what is recorded, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.commands.noise import noise_of
from orchestrator.commands.output import echo, emit_json
from orchestrator.commands.selected import store_of, writing
from orchestrator.errors import no_effect
from orchestrator.record.replay import replay
from orchestrator.report import build_table
from orchestrator.report.show.bundle import report_files
from orchestrator.report.show.export import to_json
from orchestrator.report.show.leaderboard import to_leaderboard

LEADERBOARD = "leaderboard"


def report_command(
    sweep: str, overrides: Sequence[str], output: Path | None, form: str | None, as_json: bool
) -> int:
    """Write ``report.html``, ``report.md``, ``table.csv`` and ``table.json`` into ``output``.

    As a leaderboard it is ``leaderboard.jsonl`` alone; with ``as_json`` what the files would hold
    is printed.
    """
    if as_json and output is not None:
        raise no_effect("--output", "--json, which writes no file")
    output = output or Path()
    store = store_of(overrides)
    found = replay(store, sweep)
    noise = noise_of(store, found.attempts)
    if form == LEADERBOARD:
        table = build_table(found.plan, found.attempts, noise=noise)
        lines = to_leaderboard(table, {trial.hash: trial.identity for trial in found.plan.trials})
        if as_json:
            echo(lines, nl=False)
            return 0
        files = {"leaderboard.jsonl": lines.encode("utf-8")}
    elif as_json:
        emit_json(to_json(build_table(found.plan, found.attempts, noise=noise)))
        return 0
    else:
        files = report_files(
            found.plan,
            found.attempts,
            command=found.command,
            telemetry=found.telemetry,
            noise=noise,
        )
    with writing(output, "--output"):
        output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with writing(output / name, "--output"):
            (output / name).write_bytes(content)
        echo(output / name)
    return 0
