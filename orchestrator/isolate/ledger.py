"""Turns the lines of the result pipe into what the attempt has measured so far.

Beside the recorder's events (``orchestrator.measure.recorder``) the child itself sends::

    {"e": "started"}                                     the task begins
    {"e": "end", "outcome", "reason", "traceback", "memory_bytes"}
                                                         the last line: nothing counts after it
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.attempt import Outcome
from orchestrator.measure.metric import (
    Absent,
    Engaged,
    Metric,
    MetricSpec,
    Phase,
    Samples,
    Value,
)
from orchestrator.measure.plain_json import from_json

MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True)
class Progress:
    """Something happened: ``kind`` is ``started`` or ``phase``, ``at`` Unix time.

    Of a phase ``name`` is its name, or how far it is in a few words.
    """

    kind: str
    name: str
    at: float


@dataclass(frozen=True)
class End:
    """How it ended, by the word of the child, of its supervisor or of the judge on both.

    ``memory_bytes``: the most host memory the child says it held.
    """

    outcome: Outcome
    reason: str | None = None
    traceback: str | None = None
    memory_bytes: int | None = None


@dataclass
class _Series:
    unit: str
    values: list[float] = field(default_factory=list)
    warmup: list[float] = field(default_factory=list)
    stop_reason: str | None = None
    lengths: list[int] = field(default_factory=list)  # of measured repetitions


class Ledger:
    """Everything a child has sent, usable at any moment: a death loses nothing already said.

    Attributes
    ----------
    end : End or None
        Set once the child has sent its last word.
    malformed : str or None
        What could not be understood; nothing is read after it.
    """

    def __init__(self) -> None:
        self.started = False
        self.end: End | None = None
        self.malformed: str | None = None
        self.phases: list[Phase] = []
        self.engaged: list[Engaged] = []
        self.facts: dict[str, Any] = {}
        self.specs: dict[str, MetricSpec] = {}
        self.artifacts: dict[str, None] = {}
        self._metrics: dict[str, Value | Absent | _Series] = {}
        self._open: dict[tuple[str, int], int] = {}
        self._buffer = bytearray()

    @property
    def metrics(self) -> dict[str, Metric]:
        """Metrics so far, in the order in which they first appeared."""
        return {
            name: metric
            if not isinstance(metric, _Series)
            else Samples(
                name,
                metric.unit,
                tuple(metric.values),
                tuple(metric.warmup),
                metric.stop_reason,
                tuple(metric.lengths) if any(n > 1 for n in metric.lengths) else (),
            )
            for name, metric in self._metrics.items()
        }

    def feed(self, data: bytes) -> list[Progress]:
        """Take the next bytes of the pipe; returns what a person would want to know of them."""
        news: list[Progress] = []
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n") if b"\n" in data else [self._buffer]
        self._buffer = rest
        for line in lines:
            if self.end is not None or self.malformed is not None:
                break
            try:
                self._take(json.loads(line), news)
            except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
                self._refuse(line, error)
        if len(self._buffer) > MAX_LINE_BYTES and self.malformed is None:
            self._refuse(self._buffer, ValueError(f"a line over {MAX_LINE_BYTES} bytes"))
        if self.malformed is not None:
            self._buffer.clear()
        return news

    def _refuse(self, line: bytes | bytearray, error: Exception) -> None:
        shown = bytes(line[:60]).decode(errors="backslashreplace")
        self.malformed = f"{shown!r}: {type(error).__name__}: {error}"[:300]

    def _take(self, event: dict[str, Any], news: list[Progress]) -> None:
        kind = event["e"]
        del event["e"]
        if kind == "phase":
            self._phase(event, news)
        elif kind == "samples":
            series = self._series(event["name"], event["unit"])
            target = {"measured": series.values, "warmup": series.warmup}[event["role"]]
            values = [float(value) for value in event["values"]]
            target.extend(values)
            if target is series.values:
                together = event.get("together") is True
                series.lengths += [len(values)] if together else [1] * len(values)
        elif kind == "stop":
            self._series(event["name"], "").stop_reason = str(event["reason"])
        elif kind in ("value", "absent"):
            shape: type[Value] | type[Absent] = Value if kind == "value" else Absent
            self._metrics[str(event["name"])] = from_json(shape, event)
        elif kind == "engaged":
            self.engaged.append(from_json(Engaged, event))
        elif kind == "fact":
            self.facts[str(event["key"])] = event["value"]
        elif kind == "specs":
            self.specs.update({str(s["name"]): MetricSpec(**s) for s in event["specs"]})
        elif kind == "progress":
            news.append(Progress("phase", str(event["text"]), time.time()))
        elif kind == "artifact":
            self.artifacts[str(event["name"])] = None
        elif kind == "started":
            self.started = True
            news.append(Progress("started", "", time.time()))
        elif kind == "end":
            self.end = from_json(End, event)
        else:
            raise ValueError(f"unknown event {kind!r}")

    def _series(self, name: Any, unit: Any) -> _Series:
        found = self._metrics.get(str(name))
        if not isinstance(found, _Series):
            found = self._metrics[str(name)] = _Series(str(unit))
        found.unit = found.unit or str(unit)
        return found

    def _phase(self, event: dict[str, Any], news: list[Progress]) -> None:
        key = (str(event["name"]), int(event["index"]))
        t_ns = int(event["t_ns"])
        if event["edge"] == "begin":
            self._open[key] = len(self.phases)
            self.phases.append(Phase(key[0], t_ns, None, key[1], bool(event["measured"])))
            news.append(Progress("phase", key[0], time.time()))
        elif event["edge"] == "end":
            at = self._open.pop(key)
            self.phases[at] = replace(self.phases[at], end_ns=t_ns)
        else:
            raise ValueError(f"unknown edge {event['edge']!r}")
