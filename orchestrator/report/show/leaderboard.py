"""A sweep's table as JSON lines that tables of other teams can be put under: one object a trial.

Every row says for itself what it is of, so files are merged by concatenating them. The fields are
those of ``docs/results.md``; a change of what one means raises :data:`VERSION`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from orchestrator.attempt import AttemptReport
from orchestrator.measure.wording import format_name
from orchestrator.report.analyse.cell import Cell, TrialRow
from orchestrator.report.analyse.measured import believable
from orchestrator.report.analyse.rows import SweepTable

SCHEMA, VERSION = "orchestrator/leaderboard", 1


def to_leaderboard(table: SweepTable, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows of a table, a line each; trials that never ran have none.

    Parameters
    ----------
    configs : mapping of str to identity
        By config hash.
    """
    rows = (row for row in table.rows if row.outcome != "not_run")
    lines = [_row(table, row, configs[row.hash]) for row in rows]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def _row(table: SweepTable, row: TrialRow, config: Mapping[str, Any]) -> dict[str, Any]:
    attempts = table.attempts[row.hash]
    counted = believable(attempts)
    newest = (counted or list(attempts))[-1] if attempts else None
    conditions = newest.conditions if newest else None
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "hash": row.hash,
        "sweep": table.sweep,
        "label": row.label,
        "axes": row.axes,
        "configuration": dict(_configuration(config)),
        "conditions": None if conditions is None else conditions.id,
        "hardware": None if conditions is None else dict(conditions.machine),
        "software": None if conditions is None else dict(conditions.software),
        "content": None if conditions is None else conditions.ids["content"],
        "measured": _when(newest),
        "outcome": row.outcome,
        "reason": row.reason,
        "verdict": row.verdict,
        "flags": list(row.flags),
        "precision": row.precision,
        "attempts": {"counted": len(counted), "made": len(attempts)},
        "metrics": {name: _metric(cell) for name, cell in row.cells.items()},
    }


def _configuration(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What was asked for, in the words of the command line; what has no say in it is null."""
    task, engine, model = (config.get(group) or {} for group in ("task", "engine", "model"))
    quant, device = (config.get(group) or {} for group in ("quant", "device"))
    yield "task", task.get("name")
    for option in ("batch_size", "prompt_tokens", "new_tokens"):
        yield f"task.{option}", task.get(option)
    yield "engine", engine.get("name")
    yield "model", model.get("id") or model.get("source")
    yield "model.revision", model.get("revision")
    yield "quant", format_name(quant) or None
    yield "device", device.get("kind")
    yield "device.threads", device.get("threads")
    yield "seed", config.get("seed")
    environment = config.get("environment")
    yield "environment", None if environment is None else dict(environment["packages"])


def _when(newest: AttemptReport | None) -> str | None:
    if newest is None or not newest.started_at:
        return None
    return datetime.fromtimestamp(newest.started_at, timezone.utc).isoformat(timespec="seconds")


def _metric(cell: Cell) -> dict[str, Any]:
    told = {"unit": cell.unit, "better": cell.spec.better}
    if cell.median is None:
        return {"median": None, "reason": cell.reason, **told}
    interval = {"ci_low": cell.ci_low, "ci_high": cell.ci_high}
    return {"median": cell.median, **interval, "n": cell.n, **told}
