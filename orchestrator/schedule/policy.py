"""The driver's rules as data: its limits, and which endings are tried again, how soon and where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.attempt import Outcome


@dataclass(frozen=True)
class Limits:
    """The driver's own numbers, in seconds but for ``window_factor`` and ``window_extra``.

    What is handed to the cluster waits there for a slot, and a retry waits behind it: as much as
    slots take in ``window_cover_s``, ``window_extra`` more, at most ``window_factor`` times the
    slots in all, and that many until something has ended.
    """

    window_factor: float = 1.5
    window_extra: int = 1
    window_cover_s: float = 5.0
    nodes_every_s: float = 5.0
    node_wait_s: float = 300.0
    stop_grace_s: float = 2.0
    overdue_grace_s: float = 120.0
    forced_grace_s: float = 10.0
    claimed_wait_s: float = 1.0
    gone_grace_s: float = 30.0


@dataclass(frozen=True)
class Retry:
    """What follows one outcome.

    Attributes
    ----------
    times : int
        How often a measurement that ended so is tried again; 0 means the outcome is a result.
    delay_s : float
        Wait before the first retry.
    growth : float
        Each further retry waits this many times longer.
    elsewhere : bool
        Prefer another node, where one can hold the trial.
    """

    times: int = 0
    delay_s: float = 0.0
    growth: float = 1.0
    elsewhere: bool = False

    def delay_before(self, retry: int) -> float:
        """Seconds to wait before retry number ``retry`` (from 1)."""
        return self.delay_s * self.growth ** (retry - 1)


RetryPolicy = Mapping[Outcome, Retry]


def retry_policy(*, invalid_retries: int = 1, cooldown_s: float = 30.0) -> RetryPolicy:
    """The policy of this program; what an attempt has proved (a timeout, say) is final.

    Parameters
    ----------
    invalid_retries : int
        ``verdict.retries``: how often a measurement that telemetry refused is taken again.
    cooldown_s : float
        ``verdict.cooldown_s``: what refused it (heat, a neighbour) needs time to go away.
    """
    tried_again = {
        Outcome.INVALID: Retry(times=invalid_retries, delay_s=cooldown_s),
        # The neighbours on that host may have eaten the memory: once more, later, elsewhere.
        Outcome.OOM_HOST: Retry(times=1, delay_s=5.0, elsewhere=True),
        Outcome.CRASHED: Retry(times=1, delay_s=1.0),
        # The attempt did nothing wrong; a node that dies again and again must not spin us.
        Outcome.LOST: Retry(times=4, delay_s=1.0, growth=3.0, elsewhere=True),
    }
    return {outcome: tried_again.get(outcome, Retry()) for outcome in Outcome}


def units_spent(counts: Mapping[Outcome, int], policy: RetryPolicy) -> int:
    """How many of a trial's repeats are over without a measurement, given how attempts ended.

    A repeat is spent by one attempt with a final outcome, or by an outcome that was retried as
    often as the policy allows. ``ok`` is a measurement; lost and cancelled attempts say nothing
    about the trial and never spend one.
    """
    never = {Outcome.OK, Outcome.LOST, Outcome.CANCELLED}
    return sum(
        math.floor(number / (1 + policy[outcome].times))
        for outcome, number in counts.items()
        if outcome not in never
    )
