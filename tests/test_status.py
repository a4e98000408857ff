"""``status``: what another terminal is told of a sweep."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from orchestrator.record import open_store
from orchestrator.record.drivers import DriverFile, drivers_directory
from testing.commands import orchestrator


@pytest.mark.parametrize(
    ("age_s", "told"), [(-3600.0, "0.0 s"), (2.0, "2.0 s"), (7200.0, "2 h 00 min")]
)
def test_an_age_is_none_before_it_is_written_and_reads_as_people_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: float, told: str
) -> None:
    store = open_store({"root": str(tmp_path / "mlruns")})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    with contextlib.ExitStack() as stack:
        file = DriverFile(drivers_directory(store.spool_root), "host:1:2:3", "quant", 4, 1)
        stack.callback(file.remove)
        file.publish({"ok": 2}, ["nf4 on host"])
        # The clock was set since, forwards or back.
        monkeypatch.setattr(time, "time", lambda: now + age_s)
        said = orchestrator(tmp_path, "status").out
    assert "2/4 done (2 ok), 1 cached" in said
    assert said.splitlines()[0].endswith(f", updated {told} ago")
