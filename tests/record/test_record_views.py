"""The view of a sweep's attempts that MLflow's menu *Views* lists."""

from __future__ import annotations

import json
from types import SimpleNamespace

from orchestrator.errors import StoreError
from orchestrator.record.runrecord import RunRecord
from orchestrator.record.views import MOST_METRICS, VIEW_TAG, results_view, varying_params
from orchestrator.record.writer import Writer


def test_only_what_differs_tells_trials_apart():
    base = {"task": {"name": "inference", "prompt_tokens": 16}, "seed": 0}
    other = {"task": {"name": "inference", "prompt_tokens": 64, "extra": 1}, "seed": 0}
    assert varying_params([base, other]) == ["task.prompt_tokens", "task.extra"]
    assert varying_params([base]) == []


def test_the_view_sorts_by_the_first_metric_and_draws_the_axes():
    names = [f"metric_{number}" for number in range(MOST_METRICS + 1)]
    tags = results_view(names, ["task.prompt_tokens"], at_ms=5, ascending=False)
    view = json.loads(tags[VIEW_TAG])
    assert (view["name"], view["createdAt"]) == ("Results", 5)
    state = json.loads(view["state"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`metric_0`", False)
    assert "params.`task.prompt_tokens`" in state["selectedColumns"]
    assert "metrics.`metric_0`" in state["selectedColumns"]
    parallel = state["compareRunCharts"][0]
    assert parallel["type"] == "PARALLEL"
    assert parallel["selectedParams"] == ["task.prompt_tokens"]
    assert parallel["selectedMetrics"] == names[:4], "more axes than a card has room for"
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {
        section["uuid"] for section in state["compareRunSections"]
    }


def test_all_that_differs_in_an_environment_is_one_column():
    packages = [f"environment.packages.p{number}" for number in range(9)]
    tags = results_view(["tpot_s"], ["quant.dtype", *packages, "task.depth"], at_ms=5)
    state = json.loads(json.loads(tags[VIEW_TAG])["state"])
    assert state["selectedColumns"] == [
        "tags.`outcome`",
        "tags.`verdict`",
        "tags.`environment`",
        "params.`quant.dtype`",
        "params.`task.depth`",
        "metrics.`tpot_s`",
    ]
    assert state["compareRunCharts"][0]["selectedParams"] == ["quant.dtype", "task.depth"]


def test_a_sweep_that_measured_nothing_has_no_view():
    assert results_view([], ["seed"], at_ms=5) == {}


class _Refusing:
    """A store that takes runs, but no tags of an experiment."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def experiment(self, name):
        return "1"

    def create_run(self, experiment, name, start_ms, tags):
        return SimpleNamespace(run_id="r", status="RUNNING", tags={}, experiment_id=experiment)

    def put_files(self, run, files):
        pass

    def tag_experiment(self, experiment_id, tags):
        raise StoreError("too long")

    def finish(self, run_id, record, tags):
        self.ended.append(record.status)


def test_a_refused_view_does_not_hold_up_the_results():
    store = _Refusing()
    record = RunRecord("sweep_id", "s", "FINISHED", "quant", "quant", 1, experiment_tags={"a": "b"})
    again = RunRecord.from_bytes(record.to_bytes())
    assert again == record
    Writer(store).apply(again, "digest")
    assert store.ended == ["FINISHED"]
