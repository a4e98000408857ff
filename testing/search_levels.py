"""Searches for a capacity on an endpoint, and attempts at their levels as they are recorded."""

from __future__ import annotations

import numpy as np

from orchestrator.attempt import AttemptReport, Trial
from orchestrator.commands.searching import Searched
from orchestrator.measure import Absent, Samples
from orchestrator.plan.expand import build, number_at
from orchestrator.plan.plan import Plan
from orchestrator.search.capacity import Ask
from testing.trial import ok_report

SERVED = (
    *("task=serving", "engine=endpoint", "engine.url=http://127.0.0.1:9/v1", "quant=source"),
    "reuse=hash",
)
OPEN = ("load=open", "load.rate=2", "load.requests=200")
LIMIT = ("search=capacity", "search.over=load.rate", "slo.ttft_s=0.5")


def planned(*words: str) -> Plan:
    """What is asked of the endpoint by these words."""
    return build([*SERVED, *words], device_kind=lambda cluster: "cpu")


def attempt(
    trial: Trial, edge: float, draw: np.random.Generator, over: str = "load.rate"
) -> AttemptReport:
    """Of a server that keeps the limit for 95 % of independent requests at the level ``edge``."""
    rate = number_at(trial, over)
    if trial.identity["load"] is None:
        late = draw.random(8) < min(0.9, 0.05 * (rate / edge) ** 4)
        return ok_report(Samples("e2e_s", "s", tuple(np.where(late, 0.8, 0.2).tolist())))
    if rate > 3 * edge:
        saturated = ok_report(Absent("ttft_s", "s", "the queue grew"))
        saturated.facts["requests"] = {"due": 200}
        return saturated
    late = draw.random(200) < min(0.9, 0.05 * (rate / edge) ** 4)
    ttft = Samples("ttft_s", "s", tuple(np.where(late, 0.8, 0.1 + 0.2 * draw.random(200))))
    return ok_report(
        ttft,
        Samples("answered", "1", (1.0,) * 200),
        Samples("request_new_tokens", "1", (8.0,) * 200),
    )


def next_trial(search: Searched) -> Trial:
    """The level that a search asks for."""
    assert isinstance(search.next, Ask)
    return search.trial_at(search.next.level)
