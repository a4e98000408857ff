"""The search for capacity: what it asks for, and that what is known costs nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.search.capacity import (
    Ask,
    CapacitySettings,
    Found,
    Steps,
    Undecided,
    capacity,
    search,
)
from orchestrator.search.probe import SATURATED, UNANSWERED, LevelAttempt

Known = dict[float, list[LevelAttempt]]
Server = Callable[[float, np.random.Generator], LevelAttempt]
STEADY = CapacitySettings(target=0.95, start=10.0)
REQUESTS = 200


def server(edge: float, *, steep: float = 6.0, requests: int = REQUESTS) -> Server:
    """95 % of its requests, independent of each other, meet the limit at the level ``edge``.

    Use of the limit grows with the level to the power ``steep``.
    """

    def attempt(level: float, rng: np.random.Generator) -> LevelAttempt:
        used = rng.lognormal(-1.6449, 1.0, requests) * (level / edge) ** steep
        return LevelAttempt({"ttft_s": used, "tpot_s": used / 2.0})

    return attempt


def run(
    served: Server, wanted: CapacitySettings, known: Known | None = None, seed: int = 0
) -> tuple[Found, Known, int]:
    """The answer, all attempts it rests on, and how many of them were missing."""
    known = defaultdict(list) if known is None else known
    rng, made = np.random.default_rng(seed), 0
    while isinstance(ask := capacity(known, wanted), Ask):
        known[ask.level] = [
            *known.get(ask.level, ()),
            *(served(ask.level, rng) for _ in range(ask.more)),
        ]
        made += ask.more
    return ask, known, made


def answer_to(steps: Steps, attempts: list[LevelAttempt]) -> Ask | Found:
    """What a search says next."""
    try:
        return steps.send(attempts)
    except StopIteration as ended:
        answer: Found = ended.value
        return answer


@pytest.mark.parametrize("start", [0.5, 10.0, 30.0, 700.0])
def test_it_ends_with_an_interval_of_the_width_asked_for(start: float) -> None:
    found, known, made = run(server(31.4), replace(STEADY, start=start))
    assert type(found) is Found
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 31.4 <= found.high
    assert found.high / found.low == pytest.approx(1.1, abs=0.01)
    asked = sum(level.attainment.attempts for level in found.levels)
    assert asked == made == sum(map(len, known.values()))
    assert [each.level for each in found.levels] == sorted(known)
    assert found.binding == "ttft_s"


def test_a_repeat_asks_for_nothing_and_a_killed_search_goes_on() -> None:
    found, known, _ = run(server(31.4), STEADY)
    assert capacity(known, STEADY) == found
    # Whenever it is stopped, what it asks for next is what it asked for then.
    steps, so_far = search(STEADY), Known()
    said: Ask | Found = next(steps)
    while isinstance(ask := capacity(so_far, STEADY), Ask):
        assert ask == said
        so_far[ask.level] = known[ask.level][: ask.attempts]
        said = answer_to(steps, so_far[ask.level])
    assert ask == said == found
    # Attempts and levels that it has not asked for change nothing.
    more = {**known, 5.0: known[max(known)], max(known): known[max(known)] * 2}
    assert capacity(more, STEADY) == found


def test_another_limit_on_the_same_curve_costs_little_or_nothing() -> None:
    _, known, made = run(server(31.4), STEADY)

    def stricter(by: float) -> Callable[[LevelAttempt], LevelAttempt]:
        return lambda attempt: LevelAttempt(
            {name: np.asarray(used) * by for name, used in attempt.used.items()}
        )

    same, _, none = run(
        server(31.4), STEADY, {v: list(map(stricter(1.0), a)) for v, a in known.items()}
    )
    assert (none, same.low is not None) == (0, True)
    half = {v: list(map(stricter(2.0), a)) for v, a in known.items()}
    served = server(31.4 / 2.0 ** (1 / 6.0))
    again, _, fewer = run(served, STEADY, dict(half))
    afresh, _, all_of_them = run(served, STEADY)
    assert fewer < all_of_them <= 2 * made
    for answer in (again, afresh):
        assert (answer.low or 0.0) <= 31.4 / 2.0 ** (1 / 6.0) <= (answer.high or 0.0)


@pytest.mark.parametrize("edge", [1.5, 2.3, 6.5, 40.0])
def test_levels_may_be_whole_numbers(edge: float) -> None:
    found, known, _ = run(server(edge), replace(STEADY, integer=True, start=4))
    assert all(isinstance(level, int) for level in known)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= edge <= found.high
    assert found.high - found.low == 1 or found.high <= 1.1 * found.low


def test_there_may_be_no_edge_within_the_scale() -> None:
    whole = replace(STEADY, integer=True, start=4, highest=16)
    most, known, _ = run(server(40.0), whole)
    assert (type(most), most.low, most.high, most.sharp, most.binding) == (
        Found,
        16,
        None,
        None,
        None,
    )
    assert max(known) == 16
    least, known, _ = run(server(0.4), whole)
    assert (type(least), least.low, least.high) == (Found, None, 1)
    real, known, _ = run(server(0.4), replace(STEADY, lowest=2.0))
    assert (type(real), real.low, real.high, min(known)) == (Found, None, 2.0, 2.0)


def test_a_flat_curve_is_undecided_and_says_what_it_would_take() -> None:
    found, _, _ = run(server(31.4, steep=0.3), replace(STEADY, most_attempts=8))
    assert isinstance(found, Undecided)
    assert "undecided after" in found.reason
    assert "a wider interval" in found.reason
    assert found.low is None or found.high is None or found.high > 1.12 * found.low


def test_more_attempts_go_on_from_those_that_did_not_suffice() -> None:
    served, few = server(31.4, requests=40), replace(STEADY, most_attempts=8)
    first, known, _ = run(served, few)
    assert isinstance(first, Undecided)
    many = replace(few, most_attempts=100)
    last, _, more = run(served, many, known)
    assert type(last) is Found
    _, _, all_of_them = run(served, many)
    assert 0 < more < all_of_them
    assert (last.low or 0.0) <= 31.4 <= (last.high or 0.0)
    limited, _, _ = run(served, replace(few, most_levels=3))
    assert isinstance(limited, Undecided)
    assert limited.reason == "3 levels were looked at: allow more"


def test_a_queue_that_grows_fails_whatever_was_met() -> None:
    def grows(level: float, rng: np.random.Generator) -> LevelAttempt:
        return LevelAttempt({"ttft_s": 0.5 * rng.random(REQUESTS)}, saturated=level > 20.0)

    found, _, _ = run(grows, STEADY)
    assert (type(found), found.binding, found.sharp) == (Found, SATURATED, True)
    assert (found.low or 0.0) <= 20.0 <= (found.high or 0.0)


def test_what_most_requests_missed_binds() -> None:
    def breaks(level: float, rng: np.random.Generator) -> LevelAttempt:
        used = {"ttft_s": 0.9 * rng.random(REQUESTS), "tpot_s": 0.9 * rng.random(REQUESTS)}
        missed = rng.random(REQUESTS) < 0.05 * (level / 20.0) ** 6
        used["tpot_s" if level < 40.0 else "ttft_s"][missed] = 2.0 if level < 40.0 else math.inf
        return LevelAttempt(used)

    assert run(breaks, STEADY)[0].binding == "tpot_s"
    assert run(breaks, replace(STEADY, width=3.0))[0].binding == UNANSWERED


@pytest.mark.parametrize(("steep", "sharp"), [(2.0, False), (60.0, True)])
def test_an_edge_is_sharp_where_attainment_falls_within_the_interval(
    steep: float, sharp: bool
) -> None:
    found, _, _ = run(server(31.4, steep=steep), replace(STEADY, most_attempts=200))
    assert (type(found), found.sharp) == (Found, sharp)


chosen = st.fixed_dictionaries(
    {
        "target": st.sampled_from([0.5, 0.9, 0.95, 0.99]),
        "start": st.sampled_from([1, 3, 10, 100]),
        "integer": st.booleans(),
        "width": st.sampled_from([0.02, 0.1, 0.3, 1.0]),
        "growth": st.sampled_from([1.5, 2.0, 10.0]),
        "most_attempts": st.integers(1, 20),
        "most_levels": st.integers(1, 24),
        "lowest": st.sampled_from([None, 0.5, 2]),
        "highest": st.sampled_from([None, 7, 50]),
    }
)


@settings(deadline=None, max_examples=60)
@given(
    chosen,
    st.floats(0.1, 200.0),
    st.sampled_from([0.0, 1.0, 10.0, 100.0]),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.integers(0, 2**32),
)
def test_whatever_comes_back_it_ends_within_what_it_is_allowed(
    wanted: Mapping[str, Any], edge: float, steep: float, noise: float, seed: int
) -> None:
    rules = CapacitySettings(**wanted)
    rng, known = np.random.default_rng(seed), Known()
    steps = search(rules)
    said: Ask | Found = next(steps)
    while isinstance(ask := said, Ask):
        have = known.setdefault(ask.level, [])
        assert len(have) + ask.more == ask.attempts <= rules.most_attempts
        assert ask.more > 0
        assert (rules.lowest or 0.0) <= ask.level <= (rules.highest or math.inf)
        assert isinstance(ask.level, int) or not rules.integer
        for _ in range(ask.more):
            shift = steep * math.log(ask.level / edge) + noise * rng.normal()
            used = np.exp(np.minimum(shift + rng.normal(size=30), 50.0))
            have.append(LevelAttempt({"ttft_s": used}, saturated=bool(rng.random() < 0.05)))
        said = answer_to(steps, have)
    assert isinstance(said, Found)
    assert len(said.levels) <= rules.most_levels
    assert said.low is None or said.high is None or said.low < said.high
    assert capacity(known, rules) == said
