"""``orchestrator.results``: every number is that of ``show --json``; the page's examples run."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from orchestrator.conditions import GROUPS
from orchestrator.errors import UsageError
from orchestrator.measure.predicted import is_derived
from testing.commands import orchestrator as typed
from testing.near import near
from testing.person import Swept

pytestmark = pytest.mark.xdist_group("swept")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
STATISTICS = ("ci_low", "ci_high", "mean", "std", "mad", "min", "n", "p95", "p99")


def rows_of(word: str, place: Path, **how: Any) -> list[dict[str, Any]]:
    found = orchestrator.results(word, tracking=place / "mlruns", **how)
    return list(found.table.to_pylist())


def shown(place: Path, trial: str) -> dict[str, dict[str, Any]]:
    """What ``show --json`` says of each attempt of a trial, by run."""
    attempts = typed(place, "show", trial, "--json").json["attempts"]
    return {attempt["run_id"]: attempt for attempt in attempts}


def same(row: dict[str, Any], attempt: dict[str, Any]) -> None:
    """A row against what is shown of its attempt."""
    said = attempt["metrics"][row["metric"]]
    assert row["unit"] == said["unit"]
    assert row["median"] == said.get("median", said.get("value"))
    assert [row[name] for name in STATISTICS] == [said.get(name) for name in STATISTICS]
    assert (row["outcome"], row["reason"]) == (attempt["outcome"], attempt["reason"])
    assert row["verdict"] == attempt["verdict"]["state"]
    conditions = {"id": row["conditions"], **{group: row[group] for group in GROUPS}}
    assert conditions == attempt["conditions"]
    assert row["host"] == attempt["host"]


def test_every_number_is_that_of_show(swept: Swept) -> None:
    rows = rows_of("quant", swept.place)
    told: dict[str, set[str]] = {}
    for trial in {row["trial"] for row in rows}:
        attempts = shown(swept.place, trial)
        for row in (row for row in rows if row["trial"] == trial):
            same(row, attempts[row["run_id"]])
            told.setdefault(row["run_id"], set()).add(row["metric"])
        for run_id, attempt in attempts.items():
            # Nothing is left out but what could not be measured, and what is derived.
            expected = {
                name
                for name, said in attempt["metrics"].items()
                if said.get("median", said.get("value")) is not None and not is_derived(name)
            }
            assert told[run_id] == expected
    assert {row["quant"] for row in rows} == {"fp32", "nf4"}
    assert {row["task.prompt_tokens"] for row in rows} == {48}
    assert {"tpot_s", "weights_bytes", "kl_to_reference"} <= {row["metric"] for row in rows}
    assert any(row["metric"].startswith("decode.") for row in rows)


def test_samples_have_the_medians_that_are_shown(swept: Swept) -> None:
    rows = rows_of("quant", swept.place, samples=True)
    (of_one,) = {row["trial"] for row in rows if row["quant"] == "nf4"}
    ((run_id, attempt),) = shown(swept.place, of_one).items()
    for metric in ("tpot_s", "itl_s"):
        mine = [r for r in rows if r["run_id"] == run_id and r["metric"] == metric]
        measured = [row for row in mine if row["role"] == "measured"]
        said = attempt["metrics"][metric]
        assert statistics.median(row["value"] for row in measured) == said["median"]
        assert [row["index"] for row in measured] == list(range(said["n"]))
        assert {row["unit"] for row in mine} == {"s"}
        assert all(row["repetition"] is None for row in mine if row["role"] == "warmup")
    tokens = [r for r in rows if r["run_id"] == run_id and r["metric"] == "itl_s"]
    repetitions = {row["repetition"] for row in tokens if row["role"] == "measured"}
    assert 1 < len(repetitions) < said["n"], "several tokens a repetition"


def test_failures_cached_trials_and_axes_of_several_runs(tmp_path: Path) -> None:
    base = ("task=noop", "device=cpu", "verdict=off", "telemetry.enabled=false")
    with near():
        typed(tmp_path, *base, "task.value=1,2")
        typed(tmp_path, *base, "task.value=2", "task.fault=error,''", "sweep.name=other")
        typed(tmp_path, *base, "task.value=2", "force=true")
    rows = rows_of("other", tmp_path)
    failed = [row for row in rows if row["outcome"] == "error"]
    assert [row["task.fault"] for row in failed] == ["error"] * len(failed)
    assert failed[0]["reason"]
    # The trial without a fault was measured for `adhoc`, twice.
    cached = {(row["sweep"], row["attempt"]) for row in rows if row["task.fault"] == ""}
    assert cached == {("adhoc", 1), ("adhoc", 2)}
    adhoc = [row for row in rows_of("adhoc", tmp_path) if row["metric"] == "value"]
    assert {(row["task.value"], row["attempt"]) for row in adhoc} == {(1, 1), (2, 1), (2, 2)}
    assert [row["median"] for row in adhoc] == [row["task.value"] for row in adhoc]
    newest = rows_of("adhoc@-1", tmp_path)
    assert {row["attempt"] for row in newest} == {2}
    of_trial = rows_of(newest[0]["trial"][:12], tmp_path)
    assert {row["run_id"] for row in newest} < {row["run_id"] for row in of_trial}


def test_what_is_not_there_is_said_in_a_line(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Known sweeps: adhoc") as unknown:
        rows_of("quantt", recorded)
    assert "\n" not in str(unknown.value)
    with pytest.raises(UsageError, match="Nothing is recorded yet"):
        rows_of("quant", tmp_path)
    with near():
        done = typed(tmp_path, "task=estimate", "sweep.name=cells", "--json")
    assert done.code == 0, done.err
    with pytest.raises(
        UsageError, match=r"cells only computes: its table is cells\.parquet of run"
    ):
        rows_of("cells", tmp_path)


def test_a_library_that_is_missing_is_named(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    found = orchestrator.results("adhoc", tracking=recorded / "mlruns")
    with pytest.raises(UsageError, match=r"^polars is not installed\. pip install polars$"):
        found.to_polars()


def test_it_is_arrow(recorded: Path) -> None:
    import pyarrow as pa

    found = orchestrator.results("adhoc", tracking=recorded / "mlruns")
    assert pa.table(found).equals(found.table)
    assert len(found) == found.table.num_rows == len(found.to_pandas())
    assert found.table.schema.field("task.value").type == pa.int64()


def test_importing_the_package_loads_nothing() -> None:
    loads = "import orchestrator, sys; print([m for m in sys.modules if m.startswith('orchestr')])"
    done = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['orchestrator']"
    with pytest.raises(AttributeError, match="resultss"):
        orchestrator.resultss  # noqa: B018


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_page_runs(
    block: str, swept: Swept, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert PAGE.name == "results.md"
    if "import polars" in block:
        pytest.importorskip("polars")
    monkeypatch.chdir(swept.place)
    exec(compile(block, str(PAGE), "exec"), {})
    assert "nf4" in capsys.readouterr().out


def test_few_runs_and_many_give_the_same(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = rows_of("adhoc", recorded)
    monkeypatch.setattr("orchestrator.record.embedded.FEW", 0)
    assert rows_of("adhoc", recorded) == few
