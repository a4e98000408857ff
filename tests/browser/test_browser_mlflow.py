"""A person's way through the MLflow UI on a recorded sweep, in a real headless Chromium.

Screenshots go to pytest's temporary folder, or to ``ORCHESTRATOR_SCREENSHOTS`` where that is set.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.record import open_store
from testing.chromium import CHROMIUM, FLAGS
from testing.commands import orchestrator
from testing.near import near

pytestmark = pytest.mark.timeout(600)

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SWEEP = (
    "+sweep=quant",
    "model=random_tiny",
    "quant=fp32",
    "task.prompt_tokens=16,64,256",
    "task.new_tokens=4",
    "task.quality_tokens=32",
    # Long enough for telemetry to be a line, and not a point.
    "engine.token_sleep_s=0.1",
    "protocol.max_time_s=1",
    "device=cpu",
    # What other programs do to the cores meanwhile is marked, and refuses nothing.
    "verdict=off",
    "ceilings=off",
)
PATIENCE_S = 240


@dataclass(frozen=True)
class Recorded:
    """A sweep that was really run: where, and the ids a person would click on."""

    place: Path
    parent: str
    #: Run id and config hash of each attempt, by the name that its run should have.
    attempts: dict[str, str]
    hashes: dict[str, str]

    def artifact(self, name: str) -> str:
        """A text file of the sweep's own run, as it lies on disk."""
        found = list((self.place / "mlruns").glob(f"artifacts/{self.parent}/**/{name}"))
        return found[0].read_text()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    place = tmp_path_factory.mktemp("person")
    with near():
        done = orchestrator(place, *SWEEP)
    assert done.code == 0, done.err
    store = open_store(SimpleNamespace(kind="embedded", root=str(place / "mlruns"), uri=None))
    found = [a for group in store.attempts().values() for a in group]
    of = {f"{store.identity(a.run_id)['task']['prompt_tokens']}→4 · a1": a for a in found}
    assert len(of) == 3
    return Recorded(
        place,
        store.sweep_runs("quant")[0].run_id,
        {name: a.run_id for name, a in of.items()},
        {name: a.config_hash for name, a in of.items()},
    )


@pytest.fixture(scope="module")
def address(recorded: Recorded) -> Iterator[str]:
    """``python -m orchestrator ui``, answering."""
    log = recorded.place / "ui.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "ui", "--port", "0"],
            cwd=recorded.place,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield _answering(server, log)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _answering(server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and server.poll() is None:
        said = re.search(r"http://[\d.:]+", log.read_text())
        if said is not None:
            try:
                with urllib.request.urlopen(f"{said[0]}/health", timeout=5):
                    return said[0]
            except OSError:
                pass
        time.sleep(0.2)
    raise AssertionError(f"the UI does not answer: {log.read_text()}")


@pytest.fixture(scope="module")
def browser(recorded: Recorded) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def context(browser: Any, address: str) -> Iterator[Any]:
    """What tabs share: MLflow's scripts, loaded once."""
    opened = browser.new_context(viewport={"width": 1440, "height": 900}, base_url=address)
    # Every tab begins as a new visitor's does; but MLflow opens its assistant on the first visit,
    # over a quarter of the page.
    opened.add_init_script(
        """
        if (!sessionStorage.getItem('begun')) {
            localStorage.clear();
            sessionStorage.setItem('begun', 'true');
        }
        localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
        """
    )
    yield opened
    opened.close()


@pytest.fixture
def tab(context: Any) -> Iterator[Any]:
    """A fresh tab."""
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    page.close()


@pytest.fixture
def shot(tab: Any, tmp_path: Path) -> Any:
    folder = Path(os.environ.get("ORCHESTRATOR_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: tab.screenshot(path=folder / f"{name}.png")


def runs_table(tab: Any, parent: str) -> None:
    """From the list of experiments to the table of runs."""
    tab.goto("/#/experiments")
    tab.get_by_text("Model training", exact=True).first.click()
    tab.get_by_role("link", name="quant", exact=True).first.click()
    tab.get_by_role("link", name="Runs", exact=True).click()
    tab.get_by_role("gridcell").locator(f'a[href$="{parent}"]').wait_for()


def run_page(tab: Any, run_id: str, part: str) -> None:
    """A tab of one run's page, from the table of runs."""
    if run_id not in tab.url:
        tab.get_by_role("gridcell").locator(f'a[href$="{run_id}"]').click()
    tab.get_by_role("tab", name=part, exact=True).click()
    tab.get_by_role("tab", name=part, exact=True, selected=True).wait_for()


def unfold(tab: Any, recorded: Recorded) -> None:
    """Show the attempts beneath their sweep."""
    tab.get_by_role("gridcell", name="quant").get_by_role("button").click()
    for run_id in recorded.attempts.values():
        tab.get_by_role("gridcell").locator(f'a[href$="{run_id}"]').wait_for()


def sort_by(tab: Any, metric: str) -> None:
    """Order the table by a metric, the largest first."""
    tab.get_by_role("button", name=re.compile("^Sort:")).click()
    tab.get_by_role("menu").get_by_role("searchbox").fill(metric)
    tab.get_by_role("menu").get_by_text(metric, exact=True).click()
    tab.get_by_role("columnheader", name=metric, exact=True).first.wait_for()


def rows(tab: Any) -> list[str]:
    """Names of the runs from top to bottom; their order in the document says nothing."""
    links = tab.get_by_role("gridcell").get_by_role("link").all()
    at = [(link.bounding_box()["y"], link.inner_text()) for link in links]
    return [name for _, name in sorted(at)]


def eventually(found: Any, wanted: object) -> None:
    """Wait until ``found()`` is ``wanted``; the page may be drawn anew meanwhile."""
    deadline = time.monotonic() + 30
    while (last := _now(found)) != wanted:
        assert time.monotonic() < deadline, f"{last!r} is not {wanted!r}"
        time.sleep(0.2)


def _now(found: Any) -> Any:
    try:
        return found()
    except (sync_api.Error, TypeError):
        return None


def metrics_of(address: str, run_id: str) -> dict[str, float]:
    """The metrics of a run as MLflow's own interface gives them."""
    with urllib.request.urlopen(f"{address}/api/2.0/mlflow/runs/get?run_id={run_id}") as answer:
        found = json.load(answer)["run"]["data"]["metrics"]
    return {metric["key"]: metric["value"] for metric in found}


@pytest.mark.long
def test_the_sweep_unfolds_into_named_attempts(tab: Any, recorded: Recorded, shot: Any) -> None:
    runs_table(tab, recorded.parent)
    tab.get_by_role("gridcell", name="quant").get_by_role("button").click()
    for name, run_id in recorded.attempts.items():
        link = tab.get_by_role("link", name=name, exact=True)
        link.wait_for()
        assert link.get_attribute("href").endswith(run_id)
    shot("runs")


@pytest.mark.long
def test_rows_stand_in_the_order_of_the_metric(
    tab: Any, recorded: Recorded, address: str, shot: Any
) -> None:
    of = {name: metrics_of(address, i)["ttft_s"] for name, i in recorded.attempts.items()}
    assert len(set(of.values())) == len(of)
    falling = sorted(of, key=lambda name: -of[name])
    runs_table(tab, recorded.parent)
    sort_by(tab, "ttft_s")
    # The sweep's own run has no such metric.
    eventually(lambda: rows(tab), [*falling, "quant"])
    shot("sorted")
    tab.get_by_role("columnheader", name="ttft_s", exact=True).first.click()
    eventually(lambda: [name for name in rows(tab) if name != "quant"], falling[::-1])


@pytest.mark.long
def test_two_attempts_are_compared(tab: Any, recorded: Recorded, address: str, shot: Any) -> None:
    runs_table(tab, recorded.parent)
    unfold(tab, recorded)
    chosen = sorted(recorded.attempts)[:2]
    for name in chosen:
        link = tab.locator(f'a[href$="{recorded.attempts[name]}"]')
        row = tab.get_by_role("row").filter(has=link)
        row.get_by_role("checkbox", name=re.compile("toggle row selection")).click()
    tab.get_by_role("button", name="Compare", exact=True).click()
    tab.get_by_text("Comparing 2 Runs from 1 Experiment").first.wait_for()
    for name in chosen:
        tab.get_by_text(name, exact=True).first.wait_for()
    metric = "decode_tokens_per_s"
    wanted = [metrics_of(address, recorded.attempts[name])[metric] for name in chosen]

    def stand_there() -> bool:
        text = tab.locator("body").inner_text()
        shown = [float(number) for number in re.findall(r"(?<!\S)\d+(?:\.\d+)?(?!\S)", text)]
        # MLflow shows four digits.
        return all(any(abs(n - value) <= 1e-3 * value for n in shown) for value in wanted)

    eventually(stand_there, True)
    tab.get_by_text(metric, exact=True).first.scroll_into_view_if_needed()
    shot("compared")


def test_the_report_opens_inside_the_page(tab: Any, recorded: Recorded, shot: Any) -> None:
    from html import unescape

    first = re.search(r"<li>(.*?)</li>", recorded.artifact("report.html"), re.S)
    assert first is not None
    sentence = unescape(re.sub(r"<[^>]+>", "", first[1])).strip()
    runs_table(tab, recorded.parent)
    run_page(tab, recorded.parent, "Artifacts")
    tab.get_by_text("report.html", exact=True).first.click()
    report = tab.frame_locator("iframe").first
    report.get_by_text(sentence).first.wait_for()
    table = report.get_by_role("table").first
    for config_hash in recorded.hashes.values():
        table.get_by_text(config_hash[:12]).wait_for()
    shot("report")
    # Figures are drawn by a script, which a frame may forbid: each mark is an element.
    figure = report.locator(".js-plotly-plot").first
    figure.scroll_into_view_if_needed()
    figure.locator(".point").first.wait_for()
    shot("plot")


@pytest.mark.long
def test_texts_open_inside_the_page(tab: Any, recorded: Recorded, shot: Any) -> None:
    run_id = next(iter(recorded.attempts.values()))
    runs_table(tab, recorded.parent)
    unfold(tab, recorded)
    run_page(tab, run_id, "Artifacts")
    for name, said in (
        ("config.yaml", "prompt_tokens"),
        ("environment.json", "transformers"),
        ("log.txt", ""),
    ):
        tab.get_by_text(name, exact=True).first.click()
        tab.get_by_text(re.compile(rf"Path: .*{re.escape(name)}")).wait_for()
        if said:
            tab.get_by_text(re.compile(said)).first.wait_for()
    tab.get_by_text("config.yaml", exact=True).first.click()
    tab.get_by_text(re.compile("prompt_tokens")).first.wait_for()
    shot("config")


# As docs/reading-the-report.md has it, too: what the table shows of a hash is its beginning.
@pytest.mark.long
@pytest.mark.parametrize("condition", ['= "{}"', 'LIKE "{:.12}%"'])
def test_a_hash_finds_exactly_its_attempts(
    tab: Any, recorded: Recorded, shot: Any, condition: str
) -> None:
    name, config_hash = next(iter(recorded.hashes.items()))
    runs_table(tab, recorded.parent)
    field = tab.get_by_placeholder(re.compile("metrics.rmse"))
    field.fill(f"tags.config_hash {condition.format(config_hash)}")
    # The suggestions below the field would take the first Enter.
    field.press("Escape")
    field.press("Enter")
    # MLflow adds the sweep that an attempt belongs to.
    tab.get_by_text(re.compile(r"^2\s*matching runs")).wait_for()
    tab.get_by_role("gridcell", name="quant").get_by_role("button").click()
    eventually(lambda: rows(tab), ["quant", name])
    shot("found")


@pytest.mark.long
def test_telemetry_is_drawn_over_time(tab: Any, recorded: Recorded, shot: Any) -> None:
    runs_table(tab, recorded.parent)
    unfold(tab, recorded)
    run_page(tab, next(iter(recorded.attempts.values())), "System metrics")
    tab.get_by_text("system/host").first.wait_for()
    card = tab.locator('[data-testid="experiment-view-compare-runs-card"]').filter(
        has_text="busy_s_per_s"
    )
    # A line, not the bar that MLflow draws of a single value.
    line = card.locator(".js-plotly-plot .scatterlayer .js-line").first
    line.wait_for(state="attached")
    assert line.get_attribute("d").count("L") >= 1
    shot("telemetry")


@pytest.mark.long
def test_the_description_is_the_summary_with_the_table(
    tab: Any, recorded: Recorded, shot: Any
) -> None:
    runs_table(tab, recorded.parent)
    run_page(tab, recorded.parent, "Overview")
    # What stands there before anything is unfolded is the answer.
    sentence = recorded.artifact("report.md").split("\n\n")[2]
    tab.get_by_text(sentence).wait_for()
    shot("description-folded")
    tab.get_by_role("button", name="Show more").or_(tab.get_by_text("Show more")).first.click()
    table = tab.get_by_role("table").filter(has_text="TPOT")
    for name, config_hash in recorded.hashes.items():
        row = table.get_by_role("row").filter(has_text=config_hash[:12])
        assert name.removesuffix(" · a1") in row.inner_text()
    assert "|---" not in tab.locator("body").inner_text()
    # Nothing is as wide as to be cut off at the page's right edge.
    box = table.bounding_box()
    assert box["x"] + box["width"] <= 1440
    shot("description")


def test_the_view_results_shows_what_matters(
    tab: Any, recorded: Recorded, address: str, shot: Any
) -> None:
    runs_table(tab, recorded.parent)
    tab.get_by_role("button", name="Views").click()
    tab.get_by_text("Results", exact=True).first.click()
    # Without the sweep's own run, the best attempt first, beside what tells the attempts apart.
    tab.get_by_role("columnheader", name="task.prompt_tokens", exact=True).first.wait_for()
    for column in ("tpot_s", "ttft_s"):
        tab.get_by_role("columnheader", name=column, exact=True).first.wait_for()
    of = {name: metrics_of(address, i)["tpot_s"] for name, i in recorded.attempts.items()}
    eventually(lambda: rows(tab), sorted(of, key=lambda name: of[name]))
    shot("results")
    # The radio button itself is hidden; a person clicks the picture around it.
    tab.locator("label", has=tab.locator('input[value="CHART"]')).click()
    charts = tab.locator('[data-testid="experiment-view-compare-runs-card"]')
    parallel = charts.filter(has_text="Parallel Coordinates")
    # An axis for what tells the attempts apart, and for what came of it.
    for axis in ("tpot_s", "ttft_s"):
        parallel.locator("svg").get_by_text(axis, exact=True).first.wait_for()
    assert parallel.locator("svg .dimension").count() >= 3
    # One bar an attempt.
    bars = charts.filter(has_text="tpot_s", has_not_text="Parallel Coordinates")
    bars.locator(".js-plotly-plot .bars .point").nth(2).wait_for(state="attached")
    shot("charts")
