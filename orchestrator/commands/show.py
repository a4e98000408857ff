"""``show HASH``: one trial in full, from the store alone."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.commands.output import emit, emit_json
from orchestrator.commands.selected import store_of
from orchestrator.errors import UsageError
from orchestrator.plan.predictions import with_predictions
from orchestrator.record.cells import cell_of
from orchestrator.report.show.trial_view import ShowView, show_json


def show_command(prefix: str, overrides: Sequence[str], as_json: bool) -> int:
    """One trial: configuration, attempts, metrics with CIs, verdict, provenance, artifacts."""
    store = store_of(overrides)
    if (cell := cell_of(store, prefix)) is not None:
        computed, wanted = [(cell.run_id, cell.report)], cell.report.config_hash
        if as_json:
            emit_json(show_json(wanted, cell.config, computed))
        else:
            names = {cell.run_id: store.artifact_names(cell.run_id)}
            emit(ShowView(wanted, cell.config, computed, names))
        return 0
    config_hash = store.resolve(prefix)
    finished = [a for a in store.attempts([config_hash])[config_hash] if a.outcome]
    if not finished:
        raise UsageError(f"{prefix} has no finished attempt yet", where=store.where)
    attempts = list(store.load_all(finished).items())
    config = store.identity_of(finished)
    if not attempts or config is None:
        raise UsageError(f"nothing of {prefix} can be read any more", where=store.where)
    attempts = [(run_id, with_predictions(report, config)) for run_id, report in attempts]
    if as_json:
        emit_json(show_json(config_hash, config, attempts))
        return 0
    artifacts = {run_id: store.artifact_names(run_id) for run_id, _ in attempts}
    emit(ShowView(config_hash, config, attempts, artifacts))
    return 0
