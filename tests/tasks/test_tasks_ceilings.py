"""Ceilings measured for real, at sizes that take milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.measure import HostClock, Recorder
from orchestrator.measure.arithmetic import Measured
from tasks import ceilings


def test_every_ceiling_is_measured_and_the_arithmetic_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "DTYPES", ("float32", "bfloat16"))
    monkeypatch.setattr(ceilings, "ROWS", (1, 8))
    monkeypatch.setattr(ceilings, "SPANS", (1, 16))
    monkeypatch.setattr(ceilings, "_CPU", ceilings._Scale(64, 1 << 15, (3 << 12,), (1 << 16,)))
    monkeypatch.setattr(ceilings, "_BLOCK_S", 0.0001)
    events: list[dict[str, Any]] = []
    identity = {"device": {"kind": "cpu", "threads": 1}}
    ceilings.run(identity, Recorder(events.append, HostClock(), tmp_path))
    fact = next(event["value"] for event in events if event["e"] == "fact")
    measured = Measured.from_json(fact)
    assert measured.flops_per_s("float32") > 1e6
    assert measured.flops_per_s("bfloat16", 1, "attention") > 1e4
    assert measured.bytes_per_s(1, "elementwise") > 1e6
    assert 1e-9 < measured.launch_s < 1e-2
    assert measured.spread >= 1
    assert (measured.memory_bytes or 0) > 1 << 28
    values = {event["name"]: event["value"] for event in events if event["e"] == "value"}
    assert values["gemm_flop_per_s.float32"] == measured.peak("float32")
    assert values["triad_bytes_per_s"] == measured.bytes_per_s(1, "elementwise")


def test_what_takes_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(ceilings, "_LONGEST_S", 0.001)
    timer = ceilings._Timer(HostClock())
    assert timer.seconds(lambda: time.sleep(0.01)) is None
    assert timer.seconds(lambda: None) is not None


def test_the_best_round_counts_and_a_disturbed_one_does_not() -> None:
    keys = [("triad", "", size) for size in range(8)]
    quiet, disturbed = dict.fromkeys(keys, 10.0), dict.fromkeys(keys, 1.0)
    best, spread = ceilings.combine([quiet, disturbed, quiet])
    assert best == quiet
    assert spread == 1
    # Disturbed most of the time: what was reached is kept, and known to be no steady figure.
    best, spread = ceilings.combine([disturbed, quiet, disturbed])
    assert best == quiet
    assert spread == 10
