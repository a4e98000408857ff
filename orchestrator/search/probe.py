"""One level of a search: its attempts, and what they have decided."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.statistics.attainment import Attainment, attainment
from orchestrator.statistics.medians import FloatArray

State = Literal["passed", "failed", "undecided"]

#: Names what binds where no limit does.
SATURATED, UNANSWERED = "saturated", "unanswered"
#: And where a level cannot run at all.
MEMORY, IMPOSSIBLE = "memory", "impossible"

#: Of one look at a level that counts; for estimates of how many attempts it needs.
TYPICAL_ERROR = 0.01

# Attempts after which a level is judged: one shows whether it is far from the edge.
_FIRST_LOOKS = (1, 3)
_NEXT_LOOK = 1.5
# A p value that small is enough to go by when choosing where to look; so is it that the target is
# met with such a part of every limit.
_LEANS = 0.1
_AMPLE = 0.7


@dataclass(frozen=True)
class LevelAttempt:
    """What one attempt at a level showed.

    Attributes
    ----------
    used : mapping of str to array
        Of each limit, at least one, how much of it each request used, ``(requests,)`` in the order
        they were due: the value over the limit. At most 1 is met; infinite where there is no value,
        because the request failed or was never answered.
    saturated : bool
        The queue grew over the window: none of the requests counts as met.
    stopped_by : str, optional
        :data:`MEMORY` or :data:`IMPOSSIBLE`: the level cannot run at all, so it has failed, however
        many attempts are asked for.
    """

    used: Mapping[str, ArrayLike]
    saturated: bool = False
    stopped_by: str | None = None

    @classmethod
    def that_cannot_run(cls, stopped_by: str) -> LevelAttempt:
        """Of one request, which is never answered."""
        return cls({UNANSWERED: [math.inf]}, stopped_by=stopped_by)

    @property
    def worst(self) -> FloatArray:
        """Of each request the largest use of any limit, ``(requests,)``."""
        worst = np.max([np.asarray(each, dtype=np.float64) for each in self.used.values()], axis=0)
        return np.full_like(worst, math.inf) if self.saturated else worst


@dataclass
class Probe:
    """A level that is looked at.

    Parameters
    ----------
    level : float
    most_attempts : int
        It gets no more.
    """

    level: float
    most_attempts: int
    attempts: Sequence[LevelAttempt] = ()
    state: State = "undecided"
    attainment: Attainment | None = None
    _ample: bool = False

    @property
    def exhausted(self) -> bool:
        """Whether it has all its attempts, or they would not decide it even with some luck."""
        made = len(self.attempts)
        if made >= self.most_attempts or self.attainment is None:
            return made >= self.most_attempts
        times = self.attainment.times_to_decide(TYPICAL_ERROR, luck=1.0)
        return made * times > self.most_attempts

    @property
    def only_glanced_at(self) -> bool:
        """Whether what it shows is enough to choose where to look, but not to estimate by."""
        enough = min(_FIRST_LOOKS[-1], self.most_attempts)
        return self.state == "undecided" and len(self.attempts) < enough

    @property
    def next_look(self) -> int:
        """Attempts it needs before it is judged again."""
        made = len(self.attempts)
        more = next((n for n in _FIRST_LOOKS if n > made), math.ceil(made * _NEXT_LOOK))
        return min(self.most_attempts, more)

    @property
    def next_share(self) -> float:
        """Of a level's error, what the next look may spend: as much as of its attempts it adds."""
        return (self.next_look - len(self.attempts)) / self.most_attempts

    def look(self, attempts: Sequence[LevelAttempt], target: float, error: float) -> None:
        """Judge it by these attempts, all that it has, with ``error`` to be wrong by this look."""
        self.attempts = attempts
        used = [each.worst for each in attempts]
        self.attainment = attainment(used, target)
        self._ample = float((np.concatenate(used) <= _AMPLE).mean()) > target
        if self.attainment.p_pass <= error:
            self.state = "passed"
        elif self.attainment.p_fail <= error or self._stopped_by:
            self.state = "failed"

    @property
    def leans(self) -> State:
        """What it seems to be: good enough to choose where to look, not to answer."""
        if self.state != "undecided" or self.attainment is None:
            return self.state
        if self.attainment.p_pass <= _LEANS or self._ample:
            return "passed"
        return "failed" if self.attainment.p_fail <= _LEANS else "undecided"

    @property
    def _stopped_by(self) -> str | None:
        return next((each.stopped_by for each in self.attempts if each.stopped_by), None)

    @property
    def log_odds(self) -> tuple[float, float]:
        """Of a met request against a missed one, and its standard error."""
        assert self.attainment is not None
        worth = self.attainment.effective_requests
        met = self.attainment.share * worth + 0.5
        missed = worth + 1.0 - met
        return math.log(met / missed), math.sqrt(1.0 / met + 1.0 / missed)

    @property
    def binding(self) -> str | None:
        """What most requests missed, a limit or :data:`UNANSWERED`; or what let none be met."""
        if self._stopped_by:
            return self._stopped_by
        if 2 * sum(each.saturated for each in self.attempts) > len(self.attempts):
            return SATURATED
        missed: Counter[str] = Counter()
        for attempt in self.attempts:
            arrays = {
                name: np.asarray(used, dtype=np.float64) for name, used in attempt.used.items()
            }
            answered = np.all([np.isfinite(each) for each in arrays.values()], axis=0)
            for name, used in arrays.items():
                missed[name] += int((used[answered] > 1.0).sum())
            missed[UNANSWERED] += int((~answered).sum())
        return next((name for name, count in missed.most_common(1) if count), None)
