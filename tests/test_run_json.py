"""What ``run --json`` prints."""

from __future__ import annotations

import json

from orchestrator.commands.run_json import endings, run_json
from orchestrator.schedule.state import EndedAttempt


def test_run_json_has_one_entry_an_ending() -> None:
    ended = [
        EndedAttempt("a" * 64, "a-1", 1, "lost", True),
        EndedAttempt("a" * 64, "a-2", 2, "ok", False),
        EndedAttempt("b" * 64, "b-1", 1, "oom_host", False),
    ]
    found = endings(ended, {"a-2": "r2"})
    data = run_json(found, sweep="quant", run_id="r", cached=3, wall_s=1.5)
    assert json.loads(json.dumps(data)) == {
        "sweep": "quant",
        "run_id": "r",
        "outcomes": {"ok": 1, "oom_host": 1},
        "cached": 3,
        "stale": 0,
        "wall_s": 1.5,
        "trials": [
            {"hash": "a" * 64, "outcome": "ok", "run_id": "r2"},
            {"hash": "b" * 64, "outcome": "oom_host", "run_id": None},
        ],
    }
