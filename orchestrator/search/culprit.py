"""The search for the change that moved a number: which of the differences between two ends it was.

::

    do the ends differ? -- no: there is nothing to blame
      | yes
    the shortest run of changes that moves the number: halved until one change completes it
      |
    that change alone on the good end -- moves it: the culprit; as much as the bad end? done,
      |                                            otherwise the rest is searched in the same way
      | does not
    with it made, what else completes it? ... until what was found moves the number alone:
    these act together

The order of the changes is such that every run of them from the first on can be installed
(:mod:`.coupled`), so halving needs a step a factor of two. This is delta debugging (Zeller, *Why
programs fail*) for changes in an order: it ends with a set of which none can be left out, as far as
more changes never undo what fewer do.

The search knows nothing of where rounds come from: it asks, is answered, and with the same answers
goes the same way. So what is recorded costs nothing, a killed search goes on, and a repeat asks for
nothing.

Error
-----
Halving asks many questions and follows each answer, so one wrong answer would name an innocent. A
set is therefore named only by rounds that had no part in choosing it: the set alone on the good
end, measured for this question. What was measured on the way there is left out, also if it was the
same set. Both ends are part of every round, and must still differ over all of them at the end.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from orchestrator.search.coupled import Coupling, Set
from orchestrator.search.rounds import Round, Step, Terms, decide, next_look, standing
from orchestrator.statistics.judge import Finding, Judged

# Times the questions that one culprit takes: several that act together take some more.
_MOST_STEPS = 8


@dataclass(frozen=True)
class Ask:
    """Rounds that the search needs before it can go on.

    Attributes
    ----------
    changes : set of str
        Made on the good end; all of them are the bad end.
    rounds : int
        With this candidate, in all.
    more : int
        Of them, those that are missing.
    """

    changes: Set
    rounds: int
    more: int


@dataclass(frozen=True)
class Culprit:
    """What moves the number when it is put on the good end alone.

    Attributes
    ----------
    changes : tuple of set of str
        One; or several, none of which moves it without the others. Each is one change, or a set of
        those that need each other.
    needed : set of str
        Innocent changes without which these cannot be installed; made with them.
    step : Step
        That showed it.
    alone : bool
        Whether each of several was shown not to move the number alone.
    """

    changes: tuple[Set, ...]
    needed: Set
    step: Step
    alone: bool = True


@dataclass(frozen=True)
class Answer:
    """How the search ended.

    Attributes
    ----------
    state : str
        ``found``; ``same``: the ends do not differ; or ``undecided``.
    ends : Judged or None
        Bad over good, over all rounds that count.
    culprits : tuple of Culprit
        The first explains the change, or its largest part that was found first.
    suspects : set of str
        Undecided: the changes among which it must be.
    steps : tuple of Step
        All questions in the order they were asked.
    reason : str or None
        Why it is undecided; or what is left unexplained.
    """

    state: Literal["found", "same", "undecided"]
    ends: Judged | None
    culprits: tuple[Culprit, ...] = ()
    suspects: Set = frozenset()
    steps: tuple[Step, ...] = ()
    reason: str | None = None


#: Rounds of one candidate, or one line why its attempts fail.
Rounds: TypeAlias = "Sequence[Round] | str"
Steps: TypeAlias = Generator[Ask, Rounds, Answer]


def bisect(known: Mapping[Set, Rounds], coupling: Coupling, terms: Terms) -> Ask | Answer:
    """What to do next, given all that is known: more rounds with a candidate, or the answer.

    Parameters
    ----------
    known : mapping of set to rounds
        Of each candidate the rounds that are recorded, in the order they were made; or why it
        fails.
    """
    steps = search(coupling, terms)
    ask = next(steps)
    try:
        while True:
            have = known.get(ask.changes, ())
            if not isinstance(have, str):
                if len(have) < ask.rounds:
                    return Ask(ask.changes, ask.rounds, ask.rounds - len(have))
                have = have[: ask.rounds]
            ask = steps.send(have)
    except StopIteration as ended:
        answer: Answer = ended.value
        return answer


def search(coupling: Coupling, terms: Terms) -> Steps:
    """The search as a conversation: yields an :class:`Ask`, is sent all rounds of that candidate.

    Sent are exactly ``rounds`` of them, those of earlier answers first. Returns the answer.
    """
    # The ends, a halving a factor of two, and what is named.
    questions = 2 + math.ceil(math.log2(len(coupling.order())))
    walk = _Walk(coupling, terms.shared(questions), questions)
    try:
        state, reason = yield from walk.all()
        return walk.answer(state, reason)
    except _Open as end:
        return walk.answer("undecided", end.reason, end.suspects)


class _Open(Exception):
    """A question that cannot be decided; ``suspects`` are what it leaves."""

    def __init__(self, reason: str, suspects: Set = frozenset()) -> None:
        self.reason, self.suspects = reason, suspects


@dataclass
class _Walk:
    """What was asked so far, and the way on."""

    coupling: Coupling
    terms: Terms
    questions: int
    change: Finding | None = None
    strict: bool = False  # whether a candidate may do a part of the change
    steps: list[Step] = field(default_factory=list)
    culprits: list[Culprit] = field(default_factory=list)
    _rounds: list[Round] = field(default_factory=list)  # all, in the order they were made
    _counted: list[Round] = field(default_factory=list)  # of them, those that are not void
    _used: dict[Set, int] = field(default_factory=dict)
    _chose: dict[Set, Step] = field(default_factory=dict)

    def all(self) -> Generator[Ask, Rounds, tuple[Literal["found", "same"], str | None]]:
        """The search itself; raises :class:`_Open`."""
        order = self.coupling.order()
        every: Set = frozenset().union(*order)
        ends = yield from self._ask(every)
        if ends.state == "same":
            return "same", None
        if ends.state != "changed" or ends.judged is None:
            raise _Open(ends.reason or _not_decided(ends, "whether the ends differ"), every)
        self.change = ends.judged.finding
        suspects = every
        while True:
            found = yield from self._smallest(suspects)
            if not found.partly:
                return "found", None
            suspects = self.coupling.without(suspects, found.changes)
            if not suspects:
                return "found", "the rest of the change is no other package's alone"
            self._look_for_parts()
            rest = yield from self._ask(suspects)
            if rest.state == "same":
                return "found", "the rest of the change needs several packages together"
            if rest.state != "changed":
                return "found", rest.reason or _not_decided(
                    rest, "what does the rest of the change"
                )

    def _smallest(self, suspects: Set) -> Generator[Ask, Rounds, Step]:
        """Of a closed set that moves the number, blames the smallest part that does; its step."""
        found: list[Set] = []
        base: Set = frozenset()
        while True:
            order = [each for each in self.coupling.order() if each <= suspects - base]
            last = yield from self._completing(base, order)
            completed = base.union(*order[: last + 1])
            wider = self.coupling.closed(base | order[last])
            alone = yield from self._ask(wider, fresh=True)
            if alone.state == "changed":
                yield from self._blame([*found, order[last]], wider, alone)
                return alone
            # It needs others for it; or one answer on the way was wrong, and then the set that it
            # completes is found not to move the number either.
            again = alone
            if alone.state == "same" and completed != wider:
                again = yield from self._ask(completed, fresh=True)
            if again.state not in ("changed", "same"):
                raise _Open(again.reason or _not_decided(again), completed)
            if again.state == "same" and completed == suspects:
                raise _Open("measured again, what seemed to move the number does not", completed)
            if again.state == "changed":
                found.append(order[last])
                base, suspects = wider, completed

    def _completing(self, base: Set, order: Sequence[Set]) -> Generator[Ask, Rounds, int]:
        """Which of ``order`` completes the change: with it and those before it, it is there."""
        low, high = 0, len(order)
        while high - low > 1:
            step = None
            # What fails when it runs says nothing: another place near the middle is asked.
            for at in sorted(range(low + 1, high), key=lambda at: abs(2 * at - low - high)):
                step = yield from self._ask(base.union(*order[:at]))
                if step.state != "broken":
                    break
            assert step is not None
            if step.state == "changed":
                high = at
            elif step.state == "same":
                low = at
            else:
                raise _Open(step.reason or _not_decided(step), frozenset().union(*order[low:high]))
        return high - 1

    def _blame(self, found: Sequence[Set], base: Set, step: Step) -> Generator[Ask, Rounds, None]:
        """Add what was found; of several, each that moves the number alone for itself."""
        alone: list[Step] = []
        if len(found) > 1:
            self._look_for_parts()
            for each in found:
                alone.append((yield from self._ask(self.coupling.closed(each), fresh=True)))
        moves = [
            Culprit((each,), one.changes - each, one)
            for each, one in zip(found, alone, strict=False)
            if one.state == "changed"
        ]
        if moves:
            self.culprits += moves
            return
        needed = base - frozenset().union(*found)
        apart = all(one.state == "same" for one in alone)
        self.culprits.append(Culprit(tuple(reversed(found)), needed, step, apart))

    def _look_for_parts(self) -> None:
        """From here on a candidate may do less than the bad end; being unlike it says nothing."""
        self.strict = True
        self._chose = {s: step for s, step in self._chose.items() if step.state == "changed"}

    def _ask(self, changes: Set, *, fresh: bool = False) -> Generator[Ask, Rounds, Step]:
        """Whether these changes move the number, asked until it is decided.

        ``fresh``: by rounds that answered no earlier question. Otherwise an earlier answer stands.
        """
        if changes in self._chose and not fresh:
            return self._chose[changes]
        first = self._used.get(changes, 0)
        before = list(self._rounds)
        if len(self.steps) >= _MOST_STEPS * self.questions:
            raise _Open("answers contradict each other: attempts scatter too much", changes)
        made: Sequence[Round] = ()
        step = Step(changes, "undecided")
        while step.state == "undecided" and step.rounds < self.terms.most_rounds:
            wanted = next_look(step.rounds, self.terms.most_rounds)
            sent = yield Ask(changes, first + wanted, wanted - step.rounds)
            if isinstance(sent, str):
                step = Step(changes, "broken", rounds=step.rounds, reason=sent)
                break
            made = sent[first:]
            step = decide(changes, made, before, self.change, self.terms, strict=self.strict)
        self._rounds += made
        self._counted += standing(made, before, self.terms.tau)
        self._used[changes] = first + len(made)
        self._chose[changes] = step
        self.steps.append(step)
        return step

    def answer(
        self,
        state: Literal["found", "same", "undecided"],
        reason: str | None,
        suspects: Set = frozenset(),
    ) -> Answer:
        """What is known at the end."""
        ends = self.steps[0].judged if self.steps else None
        # A round with a mixture may stand for one of the ends alone, too, and counts once.
        both = dict.fromkeys((each.good, each.bad) for each in self._counted)
        if len(both) > 1:
            good, bad = zip(*both, strict=True)
            ends = self.terms.judged(bad, good)
        culprits = tuple(self.culprits)
        if state == "found" and ends is not None and ends.finding != self.change:
            state, culprits = "undecided", ()
            reason = "over all rounds the ends do not differ as they seemed to at first"
        if state == "undecided" and culprits:
            state, suspects = "found", frozenset()
        return Answer(state, ends, culprits, suspects, tuple(self.steps), reason)


def _not_decided(step: Step, what: str = "whether it moves the number") -> str:
    void = f", {step.void} of them void because an end had moved" if step.void else ""
    names = ", ".join(sorted(step.changes))
    return (
        f"{what} is not decided after {step.rounds} rounds{void} ({names}): "
        "search.most_attempts allows more"
    )
