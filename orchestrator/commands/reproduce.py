"""``reproduce HASH``: a new attempt of exactly that configuration, then a comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.commands.noise import noise_of
from orchestrator.commands.output import echo, emit
from orchestrator.commands.run import carry_out
from orchestrator.commands.selected import finished
from orchestrator.errors import ConfigError
from orchestrator.plan.expand import plan_of, settings_of
from orchestrator.plan.identity import config_hash, rebuild
from orchestrator.plan.schema import SETTING_KEYS, Settings
from orchestrator.record import Store, open_store
from orchestrator.record.cells import FoundCell, cell_of
from orchestrator.report.analyse.compare import compare
from orchestrator.report.analyse.labels import short_hash
from orchestrator.report.show.cells_view import differences
from orchestrator.report.show.compare_view import ComparisonView

# It is made whatever is recorded, of this trial alone.
_UNREAD = {"force", "reuse", "retry", "search", "slo"}


def reproduce_command(prefix: str, overrides: Sequence[str], as_json: bool) -> int:
    """``reproduce HASH``: a new attempt of exactly that configuration, then a comparison.

    Raises
    ------
    UsageError
        Nobody knows the hash, or it begins several.
    ConfigError
        The stored configuration does not hash to what was asked for.
    """
    reads = {*SETTING_KEYS} - _UNREAD
    settings = settings_of(overrides, of="reproduce, a new attempt of one trial", reads=reads)
    settings = dataclasses.replace(settings, force=True)
    store = open_store(settings.tracking)
    if (cell := cell_of(store, prefix)) is not None:
        return _reproduce_cell(cell, store, settings, as_json)
    wanted, runs = finished(store, prefix)
    before = store.reports({wanted: runs})
    identity = _verified(store.identity(runs[-1].run_id), wanted, runs[-1].run_id)
    code = carry_out(plan_of(identity, settings), as_json=as_json, table=False)
    known = {report.attempt_id for reports in before.values() for report in reports}
    after = {
        config: [report for report in reports if report.attempt_id not in known]
        for config, reports in store.reports(store.attempts([wanted])).items()
    }
    if code == 0 and before.get(wanted) and not as_json:
        noise = noise_of(store, before)
        emit(ComparisonView(compare(before, after, noise=noise)))
    return code


def _verified(stored: Mapping[str, Any], wanted: str, run_id: str) -> dict[str, Any]:
    """The configuration that was recorded, once it is certain that it is the one asked for."""
    identity = rebuild(stored)
    if (found := config_hash(identity)) != wanted:
        raise ConfigError(
            f"the stored configuration hashes to {short_hash(found)}, not to {short_hash(wanted)}:"
            " it was changed after it was recorded, or this version reads it differently",
            where=f"run {run_id}",
            fix="Nothing was run",
        )
    return identity


def _reproduce_cell(cell: FoundCell, store: Store, settings: Settings, as_json: bool) -> int:
    """Compute a cell of a pure sweep again, record it, and say what is not as it was."""
    wanted = cell.report.config_hash
    identity = _verified(cell.config, wanted, cell.run_id)
    code = carry_out(plan_of(identity, settings), as_json=as_json)
    again = cell_of(store, wanted)
    if again is not None and not as_json:
        echo(differences(cell.report, again.report))
    return code
