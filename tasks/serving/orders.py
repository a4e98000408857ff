"""What the load generator is told, and what it tells: plain data, read without its libraries."""

from __future__ import annotations

from dataclasses import dataclass

#: The generator's event loop is watched so often.
BEAT_S = 0.005
OK = "ok"


@dataclass(frozen=True)
class Orders:
    """How requests are sent.

    Attributes
    ----------
    url : str
        Of the completions.
    key_variable : str or None
        Names the variable that has the key.
    cores : tuple of int
        Where the generator runs.
    concurrency : int or None
        Users of a closed loop, each in one conversation at a time; None for an open one.
    lead_s, ramp_s : float
        Load before what is measured; users of a closed loop begin evenly over ``ramp_s``.
    requests, duration_s : int or float or None
        What is measured ends with so many requests due, or after so long: whichever comes first.
    drain_s : float
        How long answers are waited for after the last measured request is due.
    think_s : float
        From an answer to when the next turn of its conversation is due.
    metrics_url : str or None
        Where the server's own metrics are, if it has any.
    """

    url: str
    key_variable: str | None
    cores: tuple[int, ...]
    concurrency: int | None
    lead_s: float
    ramp_s: float
    requests: int | None
    duration_s: float | None
    drain_s: float
    think_s: float = 0.0
    metrics_url: str | None = None


@dataclass(frozen=True)
class Answer:
    """One request, times in seconds since the load began.

    Attributes
    ----------
    due_s, sent_s : float
        When it was to be sent, and when that began; a connection may have to be made first.
    ended_s : float or None
        When all of its answer was there, or it failed; None where neither came.
    arrivals_s : tuple of float
        When each token came; tokens of one chunk together.
    status : str
        ``ok``, or in a line how it failed.
    measured : bool
        Whether it was due in what is measured.
    asked_tokens : int
        Output tokens asked for.
    prompt_tokens, new_tokens, cached_tokens : int or None
        As the server counts them.
    counted_by : str
        As of :class:`orchestrator.engines.completions.Completion`.
    conversation, turn : int
        Which one, in the order of the plan, from 0; and its turns from 1 on. Without conversations
        each request is one.
    sent_again : int
        How often on another connection, because the server had closed the one that was used before.
    """

    due_s: float
    sent_s: float
    ended_s: float | None
    arrivals_s: tuple[float, ...]
    status: str
    measured: bool
    asked_tokens: int
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    cached_tokens: int | None = None
    counted_by: str = ""
    conversation: int = 0
    turn: int = 1
    sent_again: int = 0


@dataclass(frozen=True)
class Load:
    """What came of a load.

    Attributes
    ----------
    begin_ns : int
        When it began, on CLOCK_MONOTONIC.
    window_s : tuple of (float, float)
        What is measured: from when on requests are, to when the first is due that is not.
    answers : tuple of Answer
        All that were sent, in the order in which they were due.
    pauses_s : tuple of (float, float)
        When the event loop came too late by :data:`BEAT_S` or more for one of its beats, which are
        so far apart: when that one was due, and how late it was.
    cpu_ratio : float
        Of the process within the window, over one core.
    """

    begin_ns: int
    window_s: tuple[float, float]
    answers: tuple[Answer, ...]
    pauses_s: tuple[tuple[float, float], ...]
    cpu_ratio: float
