"""The gate on a capacity: the levels of two searches, and what their intervals mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.attempt import Outcome
from orchestrator.errors import ConfigError
from orchestrator.measure import Absent, Samples
from orchestrator.report.analyse.gate import gate
from orchestrator.report.analyse.gate_rules import rules_from
from testing.seeds import drawing_seed
from testing.trial import ok_report

CAPACITY = {"kind": "capacity", "over": "load.rate", "limits": {"ttft_s": 0.5}}
RULES = rules_from({"rules": [CAPACITY]})


def searched(edge: float, *rates: float, attempts: int = 12, **changes: Any) -> dict[str, Any]:
    """By rate, attempts of 200 requests, of which 5 % are late at the rate ``edge``."""
    found = {}
    for rate in rates:
        draw = np.random.default_rng([drawing_seed(), round(100 * rate)])
        reports = []
        for number in range(attempts):
            late = draw.random(200) < min(0.9, 0.05 * (rate / edge) ** 6)
            ttft = Samples("ttft_s", "s", tuple(np.where(late, 0.8, 0.2).tolist()))
            answered = Samples("answered", "1", (1.0,) * 200)
            new_tokens = Samples("request_new_tokens", "1", (8.0,) * 200)
            named = {"config_hash": served_hash(rate), "attempt_id": f"{rate} {number}"}
            reports.append(ok_report(ttft, answered, new_tokens, **{**named, **changes}))
        found[served_hash(rate)] = reports
    return found


def served_hash(rate: float) -> str:
    return f"{round(100 * rate):064d}"


def served_configs(*rates: float) -> dict[str, Any]:
    return {served_hash(rate): {"load": {"rate": rate}, "seed": 0} for rate in rates}


@pytest.mark.parametrize(
    ("base", "new", "state", "said"),
    [
        # Edges at 8 and 4; the searches looked at other levels.
        ((8.0, (6.0, 10.0)), (4.0, (3.0, 5.0)), "regression", "load.rate from 6 to 10"),
        ((8.0, (6.0, 10.0)), (8.0, (6.0, 10.0)), "pass", ""),
        ((4.0, (3.0, 5.0)), (8.0, (6.0, 10.0)), "pass", ""),
        # A level that passed before fails now, but nothing lies between.
        ((8.0, (6.0, 10.0)), (4.0, (3.0, 6.0)), "inconclusive", "lower, but by less"),
        ((8.0, (6.0, 10.0)), (4.0, (3.0,)), "inconclusive", "from 3 to ? (new): too few levels"),
        # Even the lowest failed: that is below all that passed before.
        ((8.0, (6.0, 10.0)), (2.0, (4.0,)), "regression", "from ? to 4 (new)"),
    ],
)
def test_a_capacity_falls_where_all_of_its_interval_is_lower(
    base: Any, new: Any, state: str, said: str
) -> None:
    configs = served_configs(3.0, 4.0, 5.0, 6.0, 10.0)
    sides = [searched(edge, *rates) for edge, rates in (new, base)]
    found = gate(*sides, RULES, configs=configs)
    (row,) = [row for row in found.rows if row.rule == "capacity"]
    assert (row.state, found.state) == (state, state)
    assert said in (row.reason or "")
    assert row.limit == 1 / 1.03


def test_a_queue_that_grew_has_failed() -> None:
    grown = ok_report(
        Absent("ttft_s", "s", "the queue grew"),
        config_hash=served_hash(6.0),
        facts={"requests": {"due": 200}},
    )
    base = searched(8.0, 6.0, 10.0)
    new = {**searched(8.0, 3.0), served_hash(6.0): [grown] * 12}
    configs = served_configs(3.0, 6.0, 10.0)
    found = gate(new, base, RULES, configs=configs)
    (row,) = [row for row in found.rows if row.rule == "capacity"]
    assert "from 3 to 6 (new)" in (row.reason or "")


def test_a_level_without_the_memory_for_it_has_failed() -> None:
    stopped = ok_report(config_hash=served_hash(6.0), outcome=Outcome.OOM_HOST)
    new = {**searched(8.0, 3.0), served_hash(6.0): [stopped]}
    found = gate(new, searched(8.0, 6.0, 10.0), RULES, configs=served_configs(3.0, 6.0, 10.0))
    (row,) = [row for row in found.rows if row.rule == "capacity"]
    assert "from 3 to 6 (new)" in (row.reason or "")


def test_capacities_of_two_machines_are_not_compared() -> None:
    configs = served_configs(6.0, 10.0)
    here, there = (
        searched(8.0, 6.0, 10.0, facts={"hardware_fingerprint": name}) for name in ("a", "b")
    )
    assert gate(here, there, RULES, configs=configs).state == "incomparable"
    allowed = gate(here, there, RULES, configs=configs, allow_different=True)
    assert allowed.state == "pass"


def test_a_capacity_rule_names_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"rules\[0\].*limits"):
        rules_from({"rules": [{**CAPACITY, "limits": {"ttfs_s": 0.5}}]})
    with pytest.raises(ConfigError, match="limits"):
        rules_from({"rules": [{**CAPACITY, "limits": {}}]})
