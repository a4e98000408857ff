"""What is sent and when, fixed before the load begins: arrivals and lengths. Pure.

Each comes from a stream of random numbers of its own, seeded by the trial's seed: another spread of
lengths does not move the arrivals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from orchestrator.errors import one_line
from orchestrator.measure import InputError
from orchestrator.tasks.serving.prompt_file import Line

DEFAULT_REQUESTS = 100
# Sent while measured requests still wait for their answers: for so long, at most.
COOL_DOWN_S = 60.0
_LEAST_PLANNED = 256
# All of them are in memory before the first is sent: more come of a mistake in a rate or a count.
_MOST_PLANNED = 1_000_000
# Of one request: no model reads more, and a mistake in a trace is not to fill the memory.
_MOST_TOKENS = 1_000_000_000
#: Tokens of a prompt that one of a trace's ``hash_ids`` stands for.
TRACE_BLOCK = 512


@dataclass(frozen=True)
class Shape:
    """One request, or a conversation by its first, without its ids.

    Attributes
    ----------
    due_s : float or None
        Since the load began; None in a closed loop.
    prompt_tokens, new_tokens : int
        Of a line, the most that it may have.
    blocks : tuple of int
        What the prompt begins with, block by block of :data:`TRACE_BLOCK` tokens.
    line : Line or None
        Of a file, what the prompt is.
    then : tuple of Shape
        Later turns of the conversation that this request begins: what comes on top of all before.
    """

    due_s: float | None
    prompt_tokens: int
    new_tokens: int
    blocks: tuple[int, ...] = ()
    line: Line | None = None
    then: tuple[Shape, ...] = ()

    @property
    def turns(self) -> tuple[Shape, ...]:
        """This one and later ones."""
        return (self, *self.then)

    @property
    def tokens(self) -> int:
        """Of the longest sequence: all prompts and outputs of the conversation."""
        return sum(turn.prompt_tokens + turn.new_tokens for turn in self.turns)


def shapes(
    load: Mapping[str, Any],
    prompt_tokens: int,
    new_tokens: int,
    seed: int,
    lines: Sequence[Line] = (),
) -> list[Shape]:
    """Every request of a load, or the first of each conversation, in the order they are due.

    Parameters
    ----------
    load : mapping
        The trial's ``load``.
    prompt_tokens, new_tokens : int
        The means of their lengths; a trace has its own.
    lines : sequence of Line
        Of a file of prompts: what is asked, in an order that is drawn, again and again.

    Raises
    ------
    InputError
        A trace that is none, or has nothing in what is to be measured; more requests than can be
        planned.
    """
    if load["kind"] == "trace":
        return _traced(load)
    asked = (
        _of_lines(lines, prompt_tokens, new_tokens, seed)
        if lines
        else _drawn(_Lengths(load, seed), prompt_tokens, new_tokens)
    )
    # All of them before the first shape: too many are found in a moment.
    due: list[float | None] = (
        [None] * _closed_count(load)
        if load["kind"] == "closed"
        else [*_until_cool(_arrivals(load, seed), load)]
    )
    later = turns_of(load) - 1
    return [replace(next(asked), due_s=at, then=tuple(islice(asked, later))) for at in due]


def _drawn(lengths: _Lengths, prompt_tokens: int, new_tokens: int) -> Iterator[Shape]:
    while True:
        yield Shape(None, lengths.about(prompt_tokens), lengths.about(new_tokens))


def _of_lines(
    lines: Sequence[Line], prompt_tokens: int, new_tokens: int, seed: int
) -> Iterator[Shape]:
    order = list(lines)
    Random(f"lines {seed}").shuffle(order)
    for line in cycle(order):
        yield Shape(None, prompt_tokens, line.new_tokens or new_tokens, line=line)


def turns_of(load: Mapping[str, Any]) -> int:
    """Requests of a conversation; a load of single ones does not say it."""
    return int(load.get("turns", 1))


def lead_s(load: Mapping[str, Any]) -> float:
    """Load before what is measured."""
    return float(load["ramp_s"]) + float(load["warmup_s"])


def limits(load: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Requests and seconds after which the measured part ends, whichever comes first."""
    requests, duration_s = load["requests"], load["duration_s"]
    if requests is None and duration_s is None and load["kind"] != "trace":
        return DEFAULT_REQUESTS, None
    return requests, duration_s


def _closed_count(load: Mapping[str, Any]) -> int:
    # As fast as the answers come: users begin again at the first when all are sent.
    requests, _ = limits(load)
    count = max(_LEAST_PLANNED, 2 * (requests or 0) + int(load["concurrency"]))
    _check_count(count, load)
    if requests is not None and requests < load["concurrency"] and not lead_s(load):
        raise InputError(
            f"{load['concurrency']} users begin at one moment: {requests} requests have no rate",
            where="load.requests",
            fix="Ask for at least load.concurrency, or give load.warmup_s or load.ramp_s",
        )
    return count


def _check_count(count: int, load: Mapping[str, Any]) -> None:
    """:class:`InputError` for more requests, or conversations by their turns, than are planned."""
    if count * turns_of(load) > _MOST_PLANNED:
        raise InputError(
            f"has more than {_MOST_PLANNED:,} requests to plan",
            where="load",
            fix="Ask for fewer: less time, a lower rate, fewer users or requests",
        )


def _arrivals(load: Mapping[str, Any], seed: int) -> Iterator[float]:
    """When requests are due: gaps of mean 1, stretched to the rate and over the ramp."""
    rate, ramp_s = float(load["rate"]), float(load["ramp_s"])
    gaps, place = _gaps(load, Random(f"arrivals {seed}")), 0.0
    while True:
        yield _at_rate(place, rate, ramp_s)
        place += next(gaps)


def _until_cool(
    due_s: Iterator[float], load: Mapping[str, Any], where: str = "load"
) -> Iterator[float]:
    """What is due before the measured part, in it, and as long after it, but not for minutes."""
    requests, duration_s = limits(load)
    begin_s, measured = lead_s(load), 0
    end_s = math.inf if duration_s is None else begin_s + duration_s
    for count, at_s in enumerate(due_s, 1):
        _check_count(count, load)
        if measured == requests:
            end_s = min(end_s, at_s)
        if end_s <= begin_s:
            raise InputError(
                f"the first {requests} requests are due at one moment: they have no rate",
                where="load.requests",
                fix="Ask for more",
            )
        if at_s > end_s + min(end_s - begin_s, COOL_DOWN_S):
            break
        measured += begin_s <= at_s < end_s
        yield at_s
    if not measured:
        until = f" and before {end_s:g} s, where it ends" if end_s < math.inf else ""
        raise InputError(
            f"has no request after {begin_s:g} s, where measuring begins{until}",
            where=where,
            fix="Ask for more time, more requests a second or less warm-up",
        )


def _at_rate(place: float, rate: float, ramp_s: float) -> float:
    """When so many requests have come; the rate grows from 0 over the ramp."""
    if place < rate * ramp_s / 2:
        return math.sqrt(2 * place * ramp_s / rate)
    return place / rate + ramp_s / 2


def _gaps(load: Mapping[str, Any], random: Random) -> Iterator[float]:
    while True:
        if load["arrivals"] == "constant":
            yield 1.0
        elif load["arrivals"] == "poisson":
            yield random.expovariate(1.0)
        else:
            variance = float(load["burstiness"]) ** 2
            yield random.gammavariate(1 / variance, variance)


class _Lengths:
    """Draws lengths about a mean, 1 at least."""

    def __init__(self, load: Mapping[str, Any], seed: int) -> None:
        self._kind = load["lengths"]
        self._spread = float(load["spread"] or 0.0)
        self._random = Random(f"lengths {seed}")

    def about(self, mean: int) -> int:
        if self._kind == "fixed" or mean == 1:
            return mean
        if self._kind == "normal":
            # Cut at both sides alike, so that the mean stays.
            room = min(3 * self._spread * mean, mean - 1)
            while abs(off := self._random.gauss(0.0, self._spread * mean)) > room:
                continue
            return round(mean + off)
        variance = math.log1p(self._spread**2)
        drawn = self._random.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))
        return max(1, round(drawn))


def _traced(load: Mapping[str, Any]) -> list[Shape]:
    path = Path(load["trace"]).expanduser()
    found: list[Shape] = []
    due: list[float] = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            rows = _rows(lines, float(load["speed"]), found, f"load.trace={path}")
            due += _until_cool(rows, load, f"load.trace={path}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read: {one_line(error)}", where=f"load.trace={path}"
        ) from error
    if due[-1] <= lead_s(load):
        raise InputError(
            "all requests that are measured are due at one moment: they have no rate",
            where=f"load.trace={path}",
        )
    return found[: len(due)]


def _rows(lines: Iterable[str], speed: float, found: list[Shape], where: str) -> Iterator[float]:
    """When each is due; what it asks for goes into ``found``."""
    first_ms = due_s = 0.0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            at_ms = _number(row, "timestamp")
            if not found:
                first_ms = at_ms
            before_s, due_s = due_s, (at_ms - first_ms) / 1e3 / speed
            shape = Shape(
                due_s,
                _length(row, "input_length"),
                _length(row, "output_length"),
                tuple(int(block) for block in row.get("hash_ids", ())),
            )
            if not before_s <= due_s < math.inf:
                raise ValueError("earlier than the line before it")
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"line {number} is no request: {one_line(error)}",
                where=where,
                fix="Each line is JSON with timestamp (ms), input_length and output_length",
            ) from error
        found.append(shape)
        yield due_s


def _number(row: Any, key: str) -> float:
    if not isinstance(row, dict):
        raise TypeError("it is no object")
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"its {key} is {json.dumps(value)}, no number")
    return value


def _length(row: Any, key: str) -> int:
    value = _number(row, key)
    if value != int(value) or not 1 <= value <= _MOST_TOKENS:
        raise ValueError(f"its {key} is {value:g}, no count of tokens")
    return int(value)
