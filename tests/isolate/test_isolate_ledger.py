from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.attempt import Outcome
from orchestrator.isolate import ledger as ledger_module
from orchestrator.isolate.ledger import Ledger
from orchestrator.measure.metric import Absent, Samples, Value


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


EVENTS = (
    {"e": "started"},
    {"e": "phase", "edge": "begin", "name": "decode", "index": 0, "measured": True, "t_ns": 10},
    {"e": "samples", "name": "itl_s", "unit": "s", "values": [0.5], "role": "warmup"},
    {"e": "samples", "name": "itl_s", "unit": "s", "values": [1, 2.5], "role": "measured"},
    {"e": "samples", "name": "itl_s", "unit": "s", "values": [3.0], "role": "measured"},
    {"e": "stop", "name": "itl_s", "reason": "ci"},
    {"e": "value", "name": "weights_bytes", "unit": "bytes", "value": 5},
    {"e": "absent", "name": "energy_j", "unit": "J", "reason": "no GPU"},
    {"e": "engaged", "what": "dtype", "asked": "bf16", "got": "bf16", "ok": True},
    {"e": "fact", "key": "digest", "value": {"sha256": "ab"}},
    {"e": "artifact", "name": "trace.json.gz"},
    {"e": "phase", "edge": "end", "name": "decode", "index": 0, "measured": True, "t_ns": 30},
    {"e": "end", "outcome": "infeasible", "reason": "why", "traceback": None},
)


def check_whole(ledger: Ledger) -> None:
    assert ledger.malformed is None
    assert ledger.metrics == {
        "itl_s": Samples("itl_s", "s", (1.0, 2.5, 3.0), (0.5,), "ci"),
        "weights_bytes": Value("weights_bytes", "bytes", 5.0),
        "energy_j": Absent("energy_j", "J", "no GPU"),
    }
    assert list(ledger.metrics) == ["itl_s", "weights_bytes", "energy_j"]
    (phase,) = ledger.phases
    assert (phase.name, phase.begin_ns, phase.end_ns) == ("decode", 10, 30)
    assert ledger.engaged[0].ok
    assert ledger.facts == {"digest": {"sha256": "ab"}}
    assert list(ledger.artifacts) == ["trace.json.gz"]
    assert ledger.end is not None
    assert ledger.end.outcome is Outcome.INFEASIBLE


@given(st.lists(st.integers(1, 40), max_size=60))
def test_any_chunking_of_the_pipe_gives_the_same(sizes: list[int]) -> None:
    data = lines(*EVENTS)
    ledger = Ledger()
    news = []
    for size in sizes:
        news += ledger.feed(data[:size])
        data = data[size:]
    news += ledger.feed(data)
    check_whole(ledger)
    assert [(n.kind, n.name) for n in news] == [("started", ""), ("phase", "decode")]


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"\x80\x04\x95\n",
        b"[1]\n",
        b"null\n",
        b'{"e": "surprise"}\n',
        b'{"no": "kind"}\n',
        b'{"e": "value", "name": "x", "unit": "s", "value": "fast"}\n',
        b'{"e": "samples", "name": "x", "unit": "s", "values": [1], "role": "imagined"}\n',
        b'{"e": "samples", "name": "x", "unit": "s", "values": 1, "role": "measured"}\n',
        b'{"e": "phase", "edge": "end", "name": "x", "index": 0, "measured": true, "t_ns": 1}\n',
        b'{"e": "end", "outcome": "splendid", "reason": null, "traceback": null}\n',
        b"[" * 200_000 + b"\n",
    ],
)
def test_a_malformed_line_stops_reading_and_keeps_what_came_before(line: bytes) -> None:
    ledger = Ledger()
    ledger.feed(lines({"e": "value", "name": "x", "unit": "s", "value": 1}))
    ledger.feed(line)
    ledger.feed(lines({"e": "value", "name": "y", "unit": "s", "value": 2}, EVENTS[-1]))
    assert ledger.malformed is not None
    assert "\n" not in ledger.malformed
    assert list(ledger.metrics) == ["x"]
    assert ledger.end is None


def test_a_line_without_end_does_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_LINE_BYTES", 1000)
    ledger = Ledger()
    for _ in range(11):
        ledger.feed(b"x" * 100)
    assert ledger.malformed is not None
    assert "over 1000 bytes" in ledger.malformed


def test_nothing_counts_after_the_last_word() -> None:
    ledger = Ledger()
    ledger.feed(lines(EVENTS[-1], {"e": "value", "name": "x", "unit": "s", "value": 1}))
    ledger.feed(b"garbage\n")
    assert ledger.metrics == {}
    assert ledger.malformed is None


def test_a_phase_cut_short_stays_open() -> None:
    ledger = Ledger()
    ledger.feed(lines(*EVENTS[:2]))
    assert ledger.phases[0].end_ns is None
