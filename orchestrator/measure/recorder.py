"""What a task writes its measurement to: phases, samples, values, proofs, artifacts.

Every call becomes one event (a plain JSON-able dict) handed to ``emit``. In a measured child
``emit`` writes a line to the result pipe, so whatever was recorded survives the child's death.
Call it outside timed regions only: an event may block on the pipe.

Events::

    {"e": "phase", "edge": "begin"|"end", "name", "index", "measured", "t_ns"}
    {"e": "samples", "name", "unit", "values": [...], "role": "measured"|"warmup", "together"}
    {"e": "stop", "name", "reason"}
    {"e": "value", "name", "unit", "value"}     {"e": "absent", "name", "unit", "reason"}
    {"e": "engaged", "what", "asked", "got", "ok"}
    {"e": "fact", "key", "value"}               {"e": "artifact", "name"}
    {"e": "progress", "text"}
    {"e": "specs", "specs": [{"name", "unit", "better", "exact", "title", "meaning"}]}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.errors import Mismatch
from orchestrator.measure.clock import Clock
from orchestrator.measure.metric import ATTEMPT, MEASURED, MetricSpec, spelled

Event = dict[str, Any]


class Recorder:
    """Turns a task's calls into events.

    Parameters
    ----------
    emit : callable
        Takes one event; must not raise for a well-formed one.
    clock : Clock
        Used for phase boundaries.
    directory : Path
        The attempt's own directory; artifacts are files in it.
    """

    def __init__(self, emit: Callable[[Event], None], clock: Clock, directory: Path) -> None:
        self._emit = emit
        self.clock = clock
        self.directory = directory
        self._indices: dict[str, int] = {}
        self._units: dict[str, str] = {}
        self._sampled: dict[str, bool] = {}

    def declare(self, specs: Sequence[MetricSpec]) -> None:
        """Say what the metrics of these names are; those of ``Task.metrics`` are declared.

        Raises
        ------
        ValueError
            One is known in another unit.
        """
        for spec in specs:
            self._hold(spec.name, spec.unit)
        if specs:
            self._emit({"e": "specs", "specs": [asdict(spec) for spec in specs]})

    @contextmanager
    def phase(self, name: str, *, measured: bool = True) -> Iterator[int]:
        """A named window with device sync at its begin; yields its index among its namesakes.

        On CUDA it is an NVTX range as well: the timeline of Nsight Systems shows it by its name.
        """
        common = self._window(name, measured)
        self.clock.sync()
        with ExitStack() as timeline:
            if (nvtx := self.clock.nvtx) is not None:
                nvtx.range_push(name)
                timeline.callback(nvtx.range_pop)
            self._emit({**common, "edge": "begin", "t_ns": self.clock.now_ns()})
            try:
                yield common["index"]
            finally:
                # It may be an out-of-memory: a sync then raises again and hides the first.
                self._emit({**common, "edge": "end", "t_ns": self.clock.now_ns()})

    def window(self, name: str, begin_ns: int, end_ns: int, *, measured: bool = True) -> None:
        """A phase told once it is over, by edges on this recorder's clock.

        For a call whose phases show only from inside (a library that generates by itself): telling
        them as they pass would be work in the middle of what is timed.
        """
        common = self._window(name, measured)
        self._emit({**common, "edge": "begin", "t_ns": begin_ns})
        self._emit({**common, "edge": "end", "t_ns": end_ns})

    def _window(self, name: str, measured: bool) -> Event:
        """What both edges of the next window of this name say."""
        if name in (MEASURED, ATTEMPT):
            what = "all measured phases" if name == MEASURED else "the whole attempt"
            raise ValueError(f"no phase can be called {name}: its figures are those of {what}")
        index = self._indices.get(name, 0)
        self._indices[name] = index + 1
        return {"e": "phase", "name": name, "index": index, "measured": measured}

    def samples(
        self,
        name: str,
        unit: str,
        values: Sequence[float],
        *,
        role: str = "measured",
        together: bool = False,
    ) -> None:
        """Append raw samples to the series ``name``.

        Parameters
        ----------
        values : sequence of float, shape (n,)
            In ``unit``, in the order they were taken.
        role : str
            ``measured`` or ``warmup``.
        together : bool
            They are of one repetition, as tokens of a sequence are, and not independent.

        Raises
        ------
        ValueError
            A value is NaN or infinite, or ``name`` is known in another unit or as a single value.
        """
        plain = [float(v) for v in values]
        if any(not math.isfinite(v) for v in plain):
            raise ValueError(f"{name}: a sample is not finite")
        self._hold(name, unit, sampled=True if role == "measured" else None)
        event = {"e": "samples", "name": name, "unit": unit, "values": plain, "role": role}
        self._emit({**event, "together": True} if together else event)

    def stop(self, name: str, reason: str) -> None:
        """Say why sampling of the series ``name`` ended."""
        self._emit({"e": "stop", "name": name, "reason": reason})

    def value(self, name: str, unit: str, value: float) -> None:
        """Record a quantity the attempt has once; a non-finite value becomes an absence.

        Raises
        ------
        ValueError
            ``name`` is known in another unit or has samples.
        """
        if not math.isfinite(value):
            self.absent(name, unit, f"came out as {value}")
            return
        self._hold(name, unit, sampled=False)
        self._emit({"e": "value", "name": name, "unit": unit, "value": float(value)})

    def absent(self, name: str, unit: str, reason: str) -> None:
        """Record that a quantity is not known, and why; raises as :meth:`value` does."""
        self._hold(name, unit, sampled=False if self._sampled.get(name) else None)
        self._emit({"e": "absent", "name": name, "unit": unit, "reason": reason})

    def _hold(self, name: str, unit: str, *, sampled: bool | None = None) -> None:
        """One name is one quantity: in two units its samples would be pooled as if in one."""
        known = self._units.setdefault(name, spelled(unit))
        if known != spelled(unit):
            raise ValueError(f"{name} is in {known}, not {unit}: give it one unit, or another name")
        if sampled is not None and self._sampled.setdefault(name, sampled) != sampled:
            both = "has samples and a single value, of which one would replace the other"
            raise ValueError(f"{name} {both}: give one another name")

    def engaged(self, what: str, asked: object, got: object, *, ok: bool | None = None) -> None:
        """Prove that ``what`` is as asked.

        Parameters
        ----------
        ok : bool, optional
            Whether the two agree, where comparing them as text would not tell.

        Raises
        ------
        Mismatch
            They do not; the attempt ends as ``error``.
        """
        good = (str(asked) == str(got)) if ok is None else ok
        self._emit({"e": "engaged", "what": what, "asked": str(asked), "got": str(got), "ok": good})
        if not good:
            raise Mismatch(f"asked for {what} {asked}, got {got}")

    def fact(self, key: str, value: Any) -> None:
        """Provenance from inside the child (weights digest, library versions, threads ...)."""
        self._emit({"e": "fact", "key": key, "value": value})

    def progress(self, text: str) -> None:
        """Say how far a long phase is, for whoever watches: a few words, not recorded."""
        self._emit({"e": "progress", "text": text})

    def artifact(self, name: str) -> Path:
        """Path to write an artifact to, in the attempt's directory; it is collected at the end.

        Raises
        ------
        ValueError
            ``name`` leads out of the directory.
        """
        path = (self.directory / name).resolve()
        if not path.is_relative_to(self.directory.resolve()):
            raise ValueError(f"artifact name {name!r} leaves the attempt's directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._emit({"e": "artifact", "name": name})
        return path
