"""A task may change a metric's unit: each number is given with the one it was recorded in."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import orchestrator
from orchestrator.conditions import Conditions
from orchestrator.measure.metric import Samples
from orchestrator.record import Recording
from orchestrator.record.embedded import EmbeddedStore
from testing.commands import orchestrator as typed

_clock = count(1)


def record(store: EmbeddedStore, kit: SimpleNamespace, value: int, unit: str, factor: float) -> str:
    # A name that MLflow does not take as it is, too.
    names = ("step_s", "größe*s")
    values = tuple(factor * (0.1 + 0.01 * n) for n in range(5))
    metrics = {name: Samples(name, unit, values) for name in names}
    trial = kit.trial_of(value)
    spec = kit.spec_of(trial)
    report = kit.report_of(
        spec,
        metrics=metrics,
        telemetry={},
        conditions=Conditions({"CPU": "one"}, {}, {}),
        started_at=1000.0 * next(_clock),
    )
    with Recording(store, kit.plan_of([trial])) as recording:
        recording.finish(report, trial)
        assert recording.flush(60)
        run_id = recording._drainer.run_ids[spec.attempt_id]
    assert run_id is not None
    return run_id


def test_each_number_has_the_unit_it_was_recorded_in(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    runs = {
        record(store, kit, 0, "s", 1.0): ("s", 0.12),
        record(store, kit, 1, "s", 1.0): ("s", 0.12),
        record(store, kit, 0, "ms", 1000.0): ("ms", 120.0),
    }
    rows = orchestrator.results("quant", tracking=store.root).table.to_pylist()
    for name in ("step_s", "größe*s"):
        told = {
            row["run_id"]: (row["unit"], round(row["median"], 9))
            for row in rows
            if row["metric"] == name
        }
        assert told == runs


def test_a_history_is_in_one_unit(
    store: EmbeddedStore, kit: SimpleNamespace, tmp_path: Path
) -> None:
    for value, unit, factor in ((0, "s", 1.0), (1, "s", 1.0), (0, "ms", 1000.0)):
        record(store, kit, value, unit, factor)
    done = typed(tmp_path, "history", "quant", "--metric", "step_s", "--json")
    assert done.code == 0, done.err
    assert {(each["unit"], len(each["points"])) for each in done.json["series"]} == {
        ("s", 1),
        ("ms", 1),
    }
    assert done.json["left_out"] == {"with step_s in s, which is in ms now": 1}
