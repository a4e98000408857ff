"""What a window of answers shows, as the protocol defines it; answers made by hand."""

from __future__ import annotations

import heapq
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.tasks.serving import window
from orchestrator.tasks.serving.orders import OK, Answer, Load
from orchestrator.tasks.serving.recorded import SATURATED
from testing.seeds import drawing_seed


def answer(due_s: float, *arrivals_s: float, **changes: Any) -> Answer:
    """One that was sent when it was due, and ended with its last token."""
    given = {"sent_s": due_s, "ended_s": arrivals_s[-1] if arrivals_s else None, "status": OK}
    given |= {"measured": True, "asked_tokens": len(arrivals_s), **changes}
    return Answer(due_s=due_s, arrivals_s=arrivals_s, **given)


def load(*answers: Answer, begin_s: float = 0.0, end_s: float = 10.0, **changes: Any) -> Load:
    given: dict[str, Any] = {"pauses_s": (), "cpu_ratio": 0.1, **changes}
    return Load(0, (begin_s, end_s), answers, **given)


def test_latencies_count_from_when_a_request_was_due() -> None:
    late = answer(1.0, 1.5, 1.75, 2.5, sent_s=1.25)
    found = window.request_of(late)
    assert (found.ttft_s, found.e2e_s) == (0.5, 1.5)
    assert found.tpot_s == (2.5 - 1.5) / 2
    assert found.itl_s == (0.25, 0.75)


def test_tokens_that_came_together_are_tokens_of_one_moment() -> None:
    found = window.request_of(answer(0.0, 1.0, 1.0, 1.5, 1.5, 1.5, 3.0))
    assert found.tpot_s == (3.0 - 1.0) / 5
    assert found.itl_s == (0.5, 1.5)


def test_one_token_has_no_time_per_token() -> None:
    found = window.request_of(answer(0.0, 1.0))
    assert (found.ttft_s, found.e2e_s, found.tpot_s, found.itl_s) == (1.0, 1.0, None, ())


def test_rates_count_what_ended_within_the_window() -> None:
    made = load(
        answer(0.5, 1.5, 2.5, measured=False),  # due before it, ended in it
        answer(2.0, 4.0, 5.0),
        answer(9.0, 9.9, 12.0),  # ended after it
        answer(3.0, 3.5, 3.6, status="it failed"),  # its tokens came
        begin_s=2.0,
        end_s=10.0,
    )
    assert window.rates(made) == (2 / 8, (1 + 2 + 1 + 2) / 8)
    assert [each.due_s for each in window.measured(made)] == [2.0, 9.0, 3.0]


def test_achieved_is_what_was_sent_before_the_window_was_over() -> None:
    made = load(
        *(answer(k, k + 0.5) for k in range(8)),
        answer(8.0, 12.0, sent_s=10.0),
        answer(9.0, 13.0, sent_s=11.0),
        answer(10.0, 10.5, sent_s=11.0, measured=False),
    )
    assert window.achieved_ratio(made) == 0.8


def test_requests_that_are_due_as_the_window_ends_are_sent_in_time() -> None:
    # As of a trace whose requests come in batches.
    made = [answer(k / 2, k / 2 + 0.1, sent_s=k / 2 + 0.001) for k in range(5) for _ in range(8)]
    assert window.achieved_ratio(load(*made, end_s=2.0)) == 1.0
    late = [answer(2.0, 2.5, sent_s=2.0 + 2 * window.STALL_S) for _ in range(8)]
    assert window.achieved_ratio(load(*made[:-8], *late, end_s=2.0)) == 0.8


TIMES = st.integers(0, 40).map(lambda tick: tick / 4)


@given(st.lists(st.tuples(TIMES, TIMES | st.none(), st.booleans()), min_size=1, max_size=30))
def test_in_flight_is_who_has_come_and_has_no_end_yet(
    drawn: list[tuple[float, float | None, bool]],
) -> None:
    drawn.sort(key=lambda each: each[0])
    answers = [
        answer(
            due_s,
            *([] if took_s is None else [due_s + took_s]),
            status=OK if answered else "it failed",
        )
        for due_s, took_s, answered in drawn
    ]
    by_hand = [
        sum(
            other.due_s < one.due_s and (other.ended_s is None or other.ended_s >= one.due_s)
            for other in answers
        )
        for one in answers
    ]
    # Whoever comes and ends at one moment was there.
    assert window.in_flight(load(*answers)) == by_hand


def growth(made: Load) -> float:
    return window.queue_growth(made, window.in_flight(made))


def served(rate: float, seed: int, *, requests: int = 200, slots: int = 4) -> Load:
    """A server that takes ``slots`` requests at once, a second each, of Poisson arrivals."""
    random, due_s, free, answers = Random(seed), 0.0, [0.0] * slots, []
    for _ in range(requests):
        due_s += random.expovariate(rate)
        ended_s = max(due_s, heapq.heappop(free)) + 1.0
        heapq.heappush(free, ended_s)
        answers.append(answer(due_s, ended_s))
    return load(*answers, end_s=due_s)


def test_the_queue_of_a_server_that_keeps_up_does_not_grow() -> None:
    seeds = range(drawing_seed(), drawing_seed() + 100)
    for rate in (0.4, 2.0, 3.0):
        grown = [growth(served(rate, seed)) for seed in seeds]
        assert sum(share > SATURATED for share in grown) == 0
    # At 95 % of what it can take the queue is long, and seldom looks as if it grew.
    grown = [growth(served(3.8, seed)) for seed in seeds]
    assert sum(share > SATURATED for share in grown) <= 10


def test_the_queue_of_a_server_that_takes_less_than_comes_grows_by_what_is_left_over() -> None:
    seeds = range(drawing_seed(), drawing_seed() + 100)
    for rate in (6.0, 8.0, 40.0):
        grown = [growth(served(rate, seed)) for seed in seeds]
        assert all(share > SATURATED for share in grown)
        assert sum(grown) / len(grown) == pytest.approx(0.9 * (1 - 4 / rate), rel=0.1)


def test_requests_that_take_longer_than_the_load_so_far_are_no_queue() -> None:
    random, due_s, answers = Random(drawing_seed()), 0.0, []
    for number in range(300):
        due_s += random.expovariate(8.0)
        answers.append(answer(due_s, due_s + 10.0, measured=20 <= number < 120))
    made = load(*answers, end_s=answers[120].due_s)
    found = window.in_flight(made)
    assert found[-1] - found[0] > 30
    assert growth(made) == pytest.approx(0.0, abs=1e-9)
    # Each takes longer than the one before, by as much as a server of half the rate lets it wait.
    slower = [
        replace(a, arrivals_s=(2 * a.due_s + 10.0,), ended_s=2 * a.due_s + 10.0) for a in answers
    ]
    assert growth(load(*slower, end_s=made.window_s[1])) == pytest.approx(0.5)
    # The load went on while it was waited for those that have no end.
    hung = [replace(a, ended_s=None if a.due_s > 10.0 else a.ended_s) for a in answers]
    assert growth(load(*hung, end_s=made.window_s[1])) > SATURATED


def test_a_burst_is_no_queue_that_grows_all_the_time() -> None:
    """Ten requests a second, answered in a tenth of that; then thirty come almost at once."""
    quiet = [answer(k / 10, k / 10 + 0.01) for k in range(70)]
    burst = [answer(7.0 + k / 1e6, 7.01 + k / 100) for k in range(30)]
    made = load(*quiet, *burst, end_s=7.01)
    assert window.in_flight(made)[-1] == 29
    assert 0.0 < growth(made) < SATURATED / 2


def test_a_request_that_failed_is_in_no_queue() -> None:
    failed = [answer(k / 10, ended_s=k / 10 + 0.01, status="HTTP 429") for k in range(100)]
    assert growth(load(*failed)) == 0.0


@given(st.integers(1, 300))
def test_batches_are_consecutive_and_about_as_many_as_each_is_long(count: int) -> None:
    answers = [answer(float(k), k + 1.0) for k in range(count)]
    made = list(window.batches(answers))
    assert [each for batch in made for each in batch] == answers
    sizes = [len(batch) for batch in made]
    assert len(set(sizes[:-1])) <= 1
    assert abs(len(made) - sizes[0]) <= 3


@given(st.lists(st.integers(0, 20), min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_the_least_that_so_many_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = window.quantile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)


def test_stalls_are_the_share_of_the_time_that_the_generator_stood_still() -> None:
    pauses = (
        (0.5, 1.0),  # before the window
        (2.0, 0.020),
        (3.0, 0.009),  # too short to be one
        (10.5, 0.030),  # while the last answers are read
        (13.0, 1.0),  # after the last
    )
    made = load(answer(9.0, 11.0, 12.0), begin_s=2.0, end_s=10.0, pauses_s=pauses)
    assert window.stalled_ratio(made) == pytest.approx(0.050 / (12.0 - 2.0))
    unanswered = load(answer(9.0), begin_s=2.0, end_s=10.0, pauses_s=pauses)
    assert window.stalled_ratio(unanswered) == pytest.approx(0.020 / 8.0)
