"""``compare A B``: two selections of recorded attempts, metric by metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.commands.noise import noise_of
from orchestrator.commands.output import emit, emit_json
from orchestrator.commands.selected import labels_of_configs, refuse_the_same, store_of
from orchestrator.errors import UsageError, nearest
from orchestrator.record.selection import Selection, select
from orchestrator.report.analyse.compare import compare
from orchestrator.report.analyse.measured import believable
from orchestrator.report.analyse.operators import (
    OPERATORS_FILE,
    OperatorDiff,
    diff_operators,
    read_operators,
)
from orchestrator.report.analyse.pairing import pair
from orchestrator.report.show.compare_view import ComparisonView
from orchestrator.report.show.operators_view import OperatorDiffView

if TYPE_CHECKING:
    from orchestrator.record import Store


def compare_command(
    a: str,
    b: str,
    overrides: Sequence[str],
    metrics: Sequence[str],
    allow_different: bool,
    as_json: bool,
) -> int:
    """B over A, metric by metric; always 0: ``gate`` is what judges."""
    store = store_of(overrides)
    base, new = select(store, a), select(store, b)
    refuse_the_same(base, new)
    known = {name for side in (base, new) for name in side.metric_names}
    for metric in metrics:
        # `itl_s.p95` is derived from `itl_s`.
        if not {metric, metric.rpartition(".")[0]} & known:
            raise UsageError(
                f"no metric {metric!r} in either", where="--metric", fix=nearest(metric, known)
            )
    noise = noise_of(store, base.attempts, new.attempts)
    comparison = compare(
        base.attempts,
        new.attempts,
        configs=base.configs | new.configs,
        noise=noise,
        allow_different=allow_different,
        metrics=list(metrics) or None,
    )
    operators = _operator_diffs(store, base, new)
    if as_json:
        more = {"operators": [diff.to_json() for diff in operators]} if operators else {}
        emit_json({**comparison.to_json(), **more})
        return 0
    labels = labels_of_configs(base, new)
    emit(ComparisonView(comparison, labels=labels, names=(a, b)))
    for diff in operators:
        emit(OperatorDiffView(diff, labels=labels))
    return 0


def _operator_diffs(store: Store, base: Selection, new: Selection) -> list[OperatorDiff]:
    """Of every pair of trials whose newest ``ok`` attempts both left a table of operators."""

    def table(side: Selection, config_hash: str) -> dict[str, Any] | None:
        counted = believable(side.attempts[config_hash])
        if not counted or side.configs[config_hash]["task"]["name"] != "profile":
            return None
        newest = max(counted, key=lambda report: (report.number, report.started_at))
        try:
            return read_operators(store.artifact(side.run_ids[newest.attempt_id], OPERATORS_FILE))
        except FileNotFoundError:
            return None

    found = []
    for hash_a, hash_b in pair(base.attempts, new.attempts, base.configs | new.configs):
        before, after = table(base, hash_a), table(new, hash_b)
        if before is not None and after is not None:
            found.append(diff_operators(hash_a, before, hash_b, after))
    return found
