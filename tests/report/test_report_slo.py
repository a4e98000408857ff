"""Which requests met every limit, from recorded latencies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.measure import Absent, Samples
from orchestrator.report.analyse.slo import missed_limits
from testing.trial import ok_report

LIMITS = {"ttft_s": 0.5, "tpot_s": 0.05, "e2e_s": 2.0}


def series(name: str, values: Any) -> Samples:
    return Samples(name, "s", tuple(float(value) for value in values))


# Of each request: time to first token, per token, whole; None for one that was not answered.
latencies = st.lists(
    st.none()
    | st.tuples(
        st.floats(0.01, 1.0), st.floats(0.001, 0.1), st.floats(0.02, 4.0), st.integers(1, 3)
    ),
    min_size=1,
)


@given(latencies)
def test_each_request_is_judged_by_its_own_latencies(requests: list[Any]) -> None:
    answered = [request for request in requests if request is not None]
    report = ok_report(
        series("answered", [request is not None for request in requests]),
        series("ttft_s", [request[0] for request in answered]),
        # One token has no TPOT.
        series("tpot_s", [request[1] for request in answered if request[3] > 1]),
        series("e2e_s", [request[2] for request in answered]),
        series("request_new_tokens", [request[3] for request in answered]),
    )
    expected = [
        ("ttft_s", "tpot_s", "e2e_s")
        if request is None
        else tuple(
            name
            for name, value, applies in (
                ("ttft_s", request[0], True),
                ("tpot_s", request[1], request[3] > 1),
                ("e2e_s", request[2], True),
            )
            if applies and value > LIMITS[name]
        )
        for request in requests
    ]
    assert missed_limits(report, LIMITS) == expected
    only = missed_limits(report, {"e2e_s": 2.0})
    assert [bool(missed) for missed in only] == [
        request is None or request[2] > 2.0 for request in requests
    ]


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [((), "no requests were recorded"), ((Absent("ttft_s", "s", "the queue grew"),), "the queue")],
)
def test_what_has_no_latencies_says_why(metrics: Any, reason: str) -> None:
    assert reason in missed_limits(ok_report(*metrics), LIMITS)
