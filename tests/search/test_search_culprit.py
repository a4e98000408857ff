"""The search for a culprit: what it asks for and names, and that what is known costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.search.coupled import Coupling, Set
from orchestrator.search.culprit import Answer, Ask, Rounds, bisect, search
from orchestrator.search.rounds import Round, Terms, decide, next_look, standing
from testing.seeds import drawing_seed

NAMES = "abcdefgh"
FREE = Coupling({name: frozenset() for name in NAMES})
TERMS = Terms(most_rounds=12)
Known = dict[Set, Any]
Effect = Callable[[Set], float]


def run(
    effect: Effect,
    coupling: Coupling = FREE,
    known: Known | None = None,
    *,
    terms: Terms = TERMS,
    noise: float = 0.002,
    broken: Set = frozenset(),
) -> tuple[Answer, Known, int]:
    """The answer, all rounds it rests on, and how many of them were missing.

    ``effect`` gives the number of a set of changes on the good end, which has 1; sets with all of
    ``broken`` and not all changes fail when they run.
    """
    known, made = {} if known is None else known, 0
    draw, every = np.random.default_rng(drawing_seed()), frozenset(coupling.needs)
    while isinstance(ask := bisect(known, coupling, terms), Ask):
        assert coupling.closed(ask.changes) == ask.changes
        if broken and broken <= ask.changes and ask.changes != every:
            known[ask.changes] = "ImportError: no"
            continue
        have = known.setdefault(ask.changes, [])
        assert len(have) + ask.more == ask.rounds
        for _ in range(ask.more):
            good, bad, candidate = np.exp(draw.normal(0.0, noise, 3)) * (
                1.0,
                effect(every),
                effect(ask.changes),
            )
            bad_one = (float(bad),)
            whole = ask.changes == every
            have.append(Round((float(good),), bad_one, bad_one if whole else (float(candidate),)))
            made += 1
    return ask, known, made


def slowed(by: Mapping[str, float], *together: tuple[str, float]) -> Effect:
    """Each change of ``by`` has its factor, and each group of ``together`` if all of it is made."""

    def effect(changes: Set) -> float:
        factors = [factor for name, factor in by.items() if name in changes]
        factors += [factor for names, factor in together if set(names) <= changes]
        return float(np.prod(factors))

    return effect


def blamed(answer: Answer) -> list[list[str]]:
    return [["".join(sorted(each)) for each in culprit.changes] for culprit in answer.culprits]


@pytest.mark.parametrize("culprit", NAMES)
def test_one_of_eight_is_named_in_a_step_a_halving(culprit: str) -> None:
    answer, known, made = run(slowed({culprit: 1.1}))
    assert (answer.state, blamed(answer), answer.reason) == ("found", [[culprit]], None)
    (found,) = answer.culprits
    assert found.needed == frozenset()
    assert found.step.changes == {culprit}
    assert found.step.judged is not None
    assert found.step.judged.ratio == pytest.approx(1.1, abs=0.01)
    assert answer.ends is not None
    assert answer.ends.ratio == pytest.approx(1.1, abs=0.01)
    assert [step.state for step in answer.steps[:1]] == ["changed"]
    assert len(answer.steps) == 5
    assert made == sum(map(len, known.values()))


def test_ends_that_do_not_differ_end_it() -> None:
    answer, known, _ = run(slowed({}))
    assert (answer.state, answer.culprits, len(answer.steps)) == ("same", (), 1)
    assert list(known) == [frozenset(NAMES)]


def test_a_change_for_the_better_has_a_cause_too() -> None:
    answer, _, _ = run(slowed({"c": 0.9}))
    assert (answer.state, blamed(answer)) == ("found", [["c"]])


def test_what_changes_the_other_way_is_no_culprit() -> None:
    answer, _, _ = run(slowed({"b": 0.9, "g": 1.3}))
    assert blamed(answer) == [["g"]]


def test_a_repeat_asks_for_nothing_and_a_killed_search_goes_on() -> None:
    answer, known, _ = run(slowed({"f": 1.1}))
    assert bisect(known, FREE, TERMS) == answer
    steps, so_far = search(FREE, TERMS), Known()
    said: Ask | Answer = next(steps)
    while isinstance(ask := bisect(so_far, FREE, TERMS), Ask):
        assert ask == said
        so_far[ask.changes] = known[ask.changes][: ask.rounds]
        try:
            said = steps.send(so_far[ask.changes])
        except StopIteration as ended:
            said = ended.value
    assert ask == said == answer
    more = {**known, frozenset("ab"): known[frozenset(NAMES)]}
    assert bisect(more, FREE, TERMS) == answer


def test_it_is_named_by_rounds_that_had_no_part_in_choosing_it() -> None:
    answer, known, _ = run(slowed({"a": 1.1}))
    first, named = [step for step in answer.steps if step.changes == {"a"}]
    assert blamed(answer) == [["a"]]
    assert answer.culprits[0].step is named
    assert len(known[frozenset("a")]) == first.rounds + named.rounds


def test_two_that_act_together_are_named_so() -> None:
    answer, _, _ = run(slowed({}, ("bg", 1.1)))
    assert (answer.state, blamed(answer)) == ("found", [["b", "g"]])
    assert answer.culprits[0].alone
    states = {"".join(sorted(step.changes)): step.state for step in answer.steps}
    assert (states["b"], states["g"], states["bg"]) == ("same", "same", "changed")


def test_three_that_act_together_are_found() -> None:
    answer, _, _ = run(slowed({}, ("ade", 1.1)))
    assert blamed(answer) == [["a", "d", "e"]]


def test_two_that_each_do_a_part_are_both_named_with_their_part() -> None:
    answer, _, _ = run(slowed({"b": 1.08, "g": 1.12}))
    assert answer.state == "found"
    assert sorted(blamed(answer)) == [["b"], ["g"]]
    effects = {c.step.changes: c.step.judged.ratio for c in answer.culprits if c.step.judged}
    assert effects[frozenset("b")] == pytest.approx(1.08, abs=0.01)
    assert effects[frozenset("g")] == pytest.approx(1.12, abs=0.01)


def test_two_that_complete_each_other_and_do_a_part_alone_do_not_act_together() -> None:
    # The bad end is as far from either as either from the good end: which is shown first is chance.
    answer, _, _ = run(slowed({"b": 1.05, "g": 1.05}))
    assert answer.state == "found"
    assert sorted(blamed(answer)) == [["b"], ["g"]]


def test_a_part_that_is_no_other_packages_alone_is_said() -> None:
    answer, _, _ = run(slowed({"b": 1.08}, ("cg", 1.1), ("bc", 1.1)))
    assert blamed(answer)[0] == ["b"]
    lone, _, _ = run(slowed({"b": 1.08}, ("bg", 1.1)))
    assert (lone.state, blamed(lone)) == ("found", [["b"]])
    assert lone.reason == "the rest of the change needs several packages together"


def test_what_can_be_installed_is_all_that_is_asked_for() -> None:
    needs = {"t": "uk", "u": "", "k": "", "p": "q", "q": "p", "n": ""}
    coupling = Coupling({name: frozenset(others) for name, others in needs.items()})
    order = coupling.order()
    assert order.index(frozenset("t")) > order.index(frozenset("u"))
    assert frozenset("pq") in order
    one, _, _ = run(slowed({"t": 1.1}), coupling)
    assert blamed(one) == [["t"]]
    assert one.culprits[0].needed == frozenset("uk")
    pair, _, _ = run(slowed({"q": 1.1}), coupling)
    assert blamed(pair) == [["pq"]]


def test_what_fails_when_it_runs_is_gone_around() -> None:
    # Whatever holds d and e, and is not the bad end, fails.
    answer, _, _ = run(slowed({"b": 1.1}), broken=frozenset("de"))
    assert blamed(answer) == [["b"]]
    stuck, _, _ = run(slowed({"g": 1.1}), broken=frozenset("a"))
    assert stuck.state == "undecided"
    assert stuck.reason == "ImportError: no"
    assert stuck.suspects == frozenset(NAMES)


def test_what_is_not_decided_is_said_with_what_it_leaves() -> None:
    # 3 % is the tolerance itself: neither more nor less can be shown.
    answer, _, _ = run(slowed({"b": 1.03}))
    assert (answer.state, answer.suspects) == ("undecided", frozenset(NAMES))
    assert "whether the ends differ is not decided after 12 rounds" in str(answer.reason)


def test_one_change_alone_is_measured_again_too() -> None:
    alone = Coupling({"a": frozenset()})
    answer, known, _ = run(slowed({"a": 1.1}), alone)
    assert blamed(answer) == [["a"]]
    assert [step.state for step in answer.steps] == ["changed", "changed"]
    assert list(known) == [frozenset("a")]


def rounds(*goods: float) -> list[Round]:
    return [Round((good,), (1.1 * good,), (good,)) for good in goods]


def test_a_round_whose_anchor_moved_is_void() -> None:
    usual = rounds(1.0, 1.01, 0.99, 1.005, 0.995, 1.0)
    moved = [*usual, *rounds(1.3)]
    assert standing(moved, (), 0.03) == usual
    assert standing(rounds(1.3), usual, 0.03) == []
    # Either end counts, the candidate does not.
    bad = Round((1.0,), (1.4,), (1.0,))
    slow = Round((1.0,), (1.1,), (1.4,))
    assert standing([*usual, bad, slow], (), 0.03) == [*usual, slow]
    step = decide(frozenset("a"), moved, (), "regression", TERMS, strict=True)
    assert (step.state, step.rounds, step.void) == ("same", 7, 1)
    # A machine that always wanders wanders on.
    assert len(standing(rounds(1.0, 1.2, 0.9, 1.1, 0.8, 1.15), (), 0.03)) == 6
    # Of a few rounds nobody knows which is the odd one.
    assert len(standing(rounds(1.0, 1.0, 1.3), (), 0.03)) == 3


def test_looks_grow_by_half() -> None:
    looks, at = [], 0
    while at < 40:
        at = next_look(at, 40)
        looks.append(at)
    assert looks == [5, 8, 12, 18, 27, 40]


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.9, 1.0, 1.04, 1.2]), max_size=4),
    st.lists(st.tuples(st.text(NAMES, min_size=2, max_size=3), st.just(1.1)), max_size=2),
    st.dictionaries(st.sampled_from(NAMES), st.frozensets(st.sampled_from(NAMES)), max_size=5),
    st.sampled_from([0.0, 0.02, 0.2]),
)
def test_whatever_comes_back_it_ends_and_names_only_what_was_shown_alone(
    by: dict[str, float],
    together: list[tuple[str, float]],
    needs: dict[str, Set],
    noise: float,
) -> None:
    coupling = Coupling({name: needs.get(name, frozenset()) for name in NAMES})
    answer, known, _ = run(slowed(by, *together), coupling, noise=noise, terms=Terms(most_rounds=5))
    for culprit in answer.culprits:
        assert culprit.step.state == "changed"
        named = frozenset().union(*culprit.changes)
        assert culprit.step.changes == coupling.closed(named) == named | culprit.needed
    assert (answer.state == "found") == bool(answer.culprits)
    assert bisect(known, coupling, Terms(most_rounds=5)) == answer
    sent: list[Rounds] = list(known.values())
    assert sent
