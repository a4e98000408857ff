"""A person's way through the MLflow UI on a recorded sweep, in a real headless Chromium.

Screenshots go to pytest's temporary folder, or to ``ORCHESTRATOR_SCREENSHOTS`` where that is set.
"""

from __future__ import annotations

import os
import re
import shutil
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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SWEEP = (
    "+sweep=quant",
    "model=random_tiny",
    "quant=fp32,bf16",
    "task.prompt_tokens=16",
    "task.new_tokens=4",
    "task.quality_tokens=32",
    "protocol.max_time_s=0.5",
    "device=cpu",
)
PATIENCE_S = 240


@dataclass(frozen=True)
class Recorded:
    """A sweep that was really run: where, and the ids a person would click on."""

    place: Path
    parent: str
    attempts: dict[str, str]
    hashes: dict[str, str]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    place = tmp_path_factory.mktemp("person")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *SWEEP],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    store = open_store(SimpleNamespace(kind="embedded", root=str(place / "mlruns"), uri=None))
    found = [a for group in store.attempts().values() for a in group]
    of = {store.identity(a.run_id)["quant"]["dtype"]: a for a in found}
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
            [sys.executable, "-m", "orchestrator", "ui"],
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


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Any]:
    """A fresh tab that reaches this machine's server and nothing else."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, base_url=address)
    context.route(
        lambda url: not url.startswith((address, "data:", "blob:")), lambda route: route.abort()
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    context.close()


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


def test_the_sweep_unfolds_into_named_attempts(tab: Any, recorded: Recorded, shot: Any) -> None:
    runs_table(tab, recorded.parent)
    tab.get_by_role("gridcell", name="quant").get_by_role("button").click()
    for name, run_id in recorded.attempts.items():
        scheme = {"float32": "fp32", "bfloat16": "bf16"}[name]
        link = tab.get_by_role("link", name=f"{scheme} · a1", exact=True)
        link.wait_for()
        assert link.get_attribute("href").endswith(run_id)
    shot("runs")
