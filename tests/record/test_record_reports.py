"""What the command that runs a sweep asks the store for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from orchestrator.record.store import Store


def test_a_report_is_read_from_the_store_once() -> None:
    asked: list[str] = []

    def load_all(run_ids: list[str]) -> dict[str, str]:
        asked.extend(run_ids)
        return {run_id: f"report of {run_id}" for run_id in run_ids}

    store: Any = SimpleNamespace(load_all=load_all)
    ended, running = (
        SimpleNamespace(run_id=run_id, outcome=outcome)
        for run_id, outcome in (("1", "ok"), ("2", None))
    )
    loaded: dict[str, Any] = {}
    attempts: Any = {"a": [ended, running]}
    assert Store.reports(store, attempts, loaded) == {"a": ["report of 1"]}
    later: Any = {"a": [ended], "b": [SimpleNamespace(run_id="3", outcome="crashed")]}
    assert Store.reports(store, later, loaded) == {"a": ["report of 1"], "b": ["report of 3"]}
    assert asked == ["1", "3"]
