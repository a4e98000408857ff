"""Which requests met every limit, from recorded latencies."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.measure import Absent, Phase, Samples
from orchestrator.report.analyse.slo import slo_cells, used_limits
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
    used = used_limits(report, LIMITS)
    assert not isinstance(used, str)
    assert list(used) == list(LIMITS)
    for at, request in enumerate(requests):
        got = {name: values[at] for name, values in used.items()}
        if request is None:
            assert set(got.values()) == {math.inf}
            continue
        assert got["ttft_s"] == request[0] / LIMITS["ttft_s"]
        assert got["tpot_s"] == (request[1] / LIMITS["tpot_s"] if request[3] > 1 else 0.0)
        assert got["e2e_s"] == request[2] / LIMITS["e2e_s"]


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [((), "no requests were recorded"), ((Absent("ttft_s", "s", "the queue grew"),), "the queue")],
)
def test_what_has_no_latencies_says_why(metrics: Any, reason: str) -> None:
    assert reason in used_limits(ok_report(*metrics), LIMITS)


def test_attainment_and_goodput_of_two_attempts() -> None:
    attempts = [
        ok_report(
            series("answered", [1, 1, answered, 1]),
            series("ttft_s", [0.1, 0.6, 0.1, 0.1][: 3 + answered]),
            series("request_new_tokens", [2] * (3 + answered)),
            phases=[Phase("serving", 0, 2 * 10**9)],
        )
        for answered in (0, 1)
    ]
    cells = slo_cells(attempts, {"ttft_s": 0.5}, 0.9)
    share, goodput = cells["slo_attainment"], cells["goodput_per_s"]
    # The second of each is late, and one was not answered.
    assert (share.median, share.n) == (5 / 8, 8)
    assert share.ci_low is not None
    assert share.ci_high is not None
    assert share.ci_low < 5 / 8 < share.ci_high
    assert goodput.median == pytest.approx(5 / 4)


def test_requests_of_an_attempt_whose_queue_grew_are_missed() -> None:
    good = ok_report(
        series("answered", [1] * 4),
        series("ttft_s", [0.1] * 4),
        series("request_new_tokens", [2] * 4),
        phases=[Phase("serving", 0, 2 * 10**9)],
    )
    grown = ok_report(
        Absent("ttft_s", "s", "the queue grew"),
        facts={"requests": {"due": 12}},
        phases=[Phase("serving", 0, 2 * 10**9)],
    )
    cells = slo_cells([good, grown], {"ttft_s": 0.5}, 0.9)
    assert (cells["slo_attainment"].median, cells["slo_attainment"].n) == (4 / 16, 16)
    assert cells["goodput_per_s"].median == pytest.approx(1.0)
    alone = slo_cells([grown], {"ttft_s": 0.5}, 0.9)["slo_attainment"]
    assert (alone.median, alone.reason) == (None, "the queue grew")
