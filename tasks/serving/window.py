"""What the measured window of a load shows: latencies, rates, whether the server kept up. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.tasks.serving.orders import Answer, Load

#: Shorter pauses of the generator's event loop are none: they lie in what a machine does by itself.
STALL_S = 0.010
# The queue's growth is a mean over so large a part of the requests at both ends.
_END_SHARE = 0.1
# Fewer requests more in flight are chance.
_LEAST_GROWTH = 5


@dataclass(frozen=True)
class Request:
    """One measured request that was answered, seconds; from when it was due.

    Attributes
    ----------
    tpot_s : float or None
        None for one token.
    itl_s : tuple of float
        Between tokens that did not come together.
    """

    ttft_s: float
    e2e_s: float
    tpot_s: float | None
    itl_s: tuple[float, ...]


def measured(load: Load) -> list[Answer]:
    """Requests that were due within the window, in order."""
    return [answer for answer in load.answers if answer.measured]


def request_of(answer: Answer) -> Request:
    """Latencies of an answered request."""
    first, *_, last = (*answer.arrivals_s[:1], *answer.arrivals_s)
    count = len(answer.arrivals_s)
    gaps = [later - earlier for earlier, later in pairwise(answer.arrivals_s)]
    return Request(
        first - answer.due_s,
        last - answer.due_s,
        (last - first) / (count - 1) if count > 1 else None,
        tuple(gap for gap in gaps if gap > 0),
    )


def batches(answers: Sequence[Answer]) -> Iterator[Sequence[Answer]]:
    """Consecutive requests together: those that queue behind one another are not independent.

    As many batches as each has requests.
    """
    size = max(1, math.isqrt(len(answers)))
    for begin in range(0, len(answers), size):
        yield answers[begin : begin + size]


def rates(load: Load) -> tuple[float, float]:
    """Requests and tokens a second that ended within the window."""
    begin, end = load.window_s
    length_s = end - begin
    ended = [a for a in load.answers if a.status == "ok" and begin <= a.arrivals_s[-1] < end]
    tokens = sum(begin <= at < end for a in load.answers for at in a.arrivals_s)
    return len(ended) / length_s, tokens / length_s


def achieved_ratio(load: Load) -> float:
    """Of the requests that were due within the window, the share that was sent within it.

    The last of them may be due at its very end: sent as soon as it was due, it was sent in time.
    """
    due, end = measured(load), load.window_s[1]
    return sum(a.sent_s < end or a.sent_s - a.due_s <= STALL_S for a in due) / len(due)


def in_flight(load: Load) -> list[int]:
    """How many other requests each measured one found without an end when it was due."""
    events = [(answer.due_s, 1) for answer in load.answers]
    events += [(a.ended_s, -1) for a in load.answers if a.ended_s is not None]
    events.sort()
    found, count, place = [], 0, 0
    for answer in measured(load):
        while place < len(events) and events[place][0] < answer.due_s:
            count += events[place][1]
            place += 1
        found.append(count)
    return found


def queue_growth(load: Load, found: Sequence[int]) -> float:
    """How much of what came stayed unanswered because the server answers less than comes.

    That is the growth of what is in flight over the requests due, and by how much further apart
    answers come than requests: the smaller of the two. Requests that take longer than the load so
    far are ever more in flight, and so is a burst, though the server answers them as they come.

    Parameters
    ----------
    found : sequence of int
        As of :func:`in_flight`.
    """
    part = max(1, round(_END_SHARE * len(found)))
    growth = (sum(found[-part:]) - sum(found[:part])) / part
    if growth < _LEAST_GROWTH:
        return 0.0
    due = measured(load)
    known_s = max(answer.ended_s or answer.due_s for answer in load.answers)
    first, last = due[:part], due[-part:]
    came_s = sum(a.due_s for a in last) - sum(a.due_s for a in first)
    went_s = sum(a.ended_s or known_s for a in last) - sum(a.ended_s or known_s for a in first)
    return min(growth / len(found), 1.0 - came_s / went_s) if went_s > came_s else 0.0


def stalled_ratio(load: Load) -> float:
    """Share of the time in which the generator stood still for more than :data:`STALL_S`.

    From the beginning of the window to the end of the last measured request: so many of its
    requests and tokens were sent or seen too late.
    """
    begin, end = load.window_s
    last = max((a.ended_s for a in measured(load) if a.ended_s is not None), default=end)
    lost_s = sum(late for at, late in load.pauses_s if late > STALL_S and begin <= at < last)
    return lost_s / (max(last, end) - begin)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
