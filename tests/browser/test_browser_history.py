"""The page of ``history`` in a real browser, from the disk: every figure is drawn, none fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.measure.metric import MetricSpec
from orchestrator.report.analyse.history import History, Taken, series_of
from orchestrator.report.show.history_page import history_page
from testing.chromium import CHROMIUM, FLAGS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

RUNS, STEP = 20, 14


def history() -> History:
    """Two trials, one of which steps."""
    spec = MetricSpec("tpot_s", "s", "lower", title="TPOT")

    def taken(after: float) -> list[Taken]:
        medians = [(after if at >= STEP else 1.0) * (1 + 0.004 * (at % 3)) for at in range(RUNS)]
        return [
            Taken(f"run{at}", f"id{at}", "a" * 64, 1.75e9 + 86_400.0 * at, m, 0.99 * m, 1.01 * m)
            for at, m in enumerate(medians)
        ]

    named = {"nf4 <i>": 1.2, "fp32": 1.0}
    return History(
        "quant", tuple(series_of(name, spec, "", taken(after)) for name, after in named.items())
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn(tmp_path: Path, scheme: str) -> None:
    page_file = tmp_path / "index.html"
    page_file.write_text(history_page(history()), encoding="utf-8")
    wrong: list[str] = []
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = chromium.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(page_file.as_uri())
        page.locator(".plot .main-svg").nth(2).wait_for()
        assert page.get_by_role("heading", level=3).all_inner_texts() == ["nf4 <i>", "fp32"]
        # A mark a run, and the label of the one step.
        marks = [page.locator(".plot").nth(at).locator(".point").count() for at in (0, 1)]
        assert marks == [RUNS, RUNS]
        assert page.locator(".annotation").all_text_contents()[0].startswith("▼ 1.20×")
        assert page.locator(".plot").nth(1).locator(".annotation").count() == 0
        assert page.locator("tbody tr").count() == 1
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 1280
        chromium.close()
    assert wrong == []
