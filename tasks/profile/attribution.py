"""Whose time it was: self times, phases and busy time from a profiler's events. Pure arithmetic.

::

    host     |-- linear ------------|        self time: what no inner call covers
                |-- addmm -----|
    device           |= gemm =|  |= relu =|  device self time: kernels, by the operator that
                                             launched them

Every nanosecond is counted once: an inner call's time is not its caller's, a phase has none of its
own, and what a kernel takes is not what its launch took. So shares add up to one.

Floating-point operations of operators that the profiler counts none for, from their shapes.

torch.profiler knows products and sums of its own (``aten::mm``, ``aten::mul``); attention and the
products of bitsandbytes are the rest of a transformer's work. A multiply-add is two operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

from orchestrator.tasks.profile.profiler_events import Event, Kind, Shapes

# How far the sum of all shares may be from one; only rounding can bring it there.
SHARES_TOLERANCE = 0.001

_ITEM_BYTES = {
    "double": 8,
    "long": 8,
    "long int": 8,
    "float": 4,
    "int": 4,
    "c10::BFloat16": 2,
    "c10::Half": 2,
    "short": 2,
    "signed char": 1,
    "unsigned char": 1,
    "bool": 1,
    "c10::Float8_e4m3fn": 1,
    "c10::Float8_e5m2": 1,
}


@dataclass
class Operator:
    """All calls of one operator.

    Attributes
    ----------
    self_ns : int
        Time of its own, on the device where there is one, else on the host.
    phases : dict of str to int
        The same by phase; adds up to ``self_ns``.
    shapes : dict of Shapes to int
        Calls by the shapes of their inputs.
    flops, read_bytes : int
        Floating-point operations of its own, and bytes of the tensor inputs (each once a call).
    kernels : int
        Pieces of work on the device.
    """

    name: str
    self_ns: int = 0
    calls: int = 0
    phases: dict[str, int] = field(default_factory=dict)
    shapes: dict[Shapes, int] = field(default_factory=dict)
    flops: int = 0
    read_bytes: int = 0
    kernels: int = 0


@dataclass(frozen=True)
class Copies:
    """Copies of one direction."""

    count: int
    moved_bytes: int
    busy_ns: int


@dataclass(frozen=True)
class Profile:
    """What a pass under the profiler says.

    Attributes
    ----------
    operators : tuple of Operator
        Longest self time first.
    wall_ns : dict of str to int
        Each phase's, by name.
    busy_ns : dict of str to int
        Of each phase: the union of the intervals in which the device computed or copied (on a
        CPU: in which any operator ran). Never more than its wall time.
    copies : dict of str to Copies
        By direction: ``HtoD``, ``DtoH``, ``DtoD``.
    """

    operators: tuple[Operator, ...]
    wall_ns: dict[str, int]
    busy_ns: dict[str, int]
    copies: dict[str, Copies]

    @property
    def self_ns(self) -> int:
        """All operators' self time."""
        return sum(operator.self_ns for operator in self.operators)

    @property
    def busy_fraction(self) -> float:
        """Busy time over wall time of all phases."""
        return sum(self.busy_ns.values()) / sum(self.wall_ns.values())

    def share(self, operator: Operator) -> float:
        """Of all self time, 0 to 1."""
        return operator.self_ns / self.self_ns

    def phase_self_ns(self, phase: str) -> int:
        """Self time within one phase."""
        return sum(operator.phases.get(phase, 0) for operator in self.operators)


def attribute(events: Iterable[Event], *, device: bool) -> Profile:
    """Account for a profile's time.

    Parameters
    ----------
    events : iterable of Event
        In any order. What lies outside every phase is left out; work on the device belongs to the
        phase that launched it.
    device : bool
        Whether self time is the device's: then operators that launched nothing have none.

    Raises
    ------
    ValueError
        If there is no phase, phases overlap, nothing was captured in them, or (``device``) no work
        on the device was.
    """
    listed = list(events)
    windows = _Windows([event for event in listed if event.kind is Kind.PHASE])
    within = windows.within([event for event in listed if event.kind is Kind.OPERATOR])
    operators = [event for event, _ in within]
    on_device = [event for event in listed if event.on_device]
    by_correlation = {e.correlation: e for e in operators if e.correlation} if on_device else {}
    work = [
        (event, by_correlation.get(event.correlation), phase)
        for event, phase in windows.within(
            on_device, lambda event: by_correlation.get(event.correlation, event)
        )
    ]
    if device and not work:
        raise ValueError("no kernel was captured on the device")
    if not operators and not work:
        raise ValueError("no operator was captured")

    table: dict[str, Operator] = {}
    own_ns = [0] * len(operators) if device else self_times(operators)
    for (event, phase), self_ns, flops in zip(within, own_ns, self_flops(operators), strict=True):
        entry = table.get(event.name)
        if entry is None:
            entry = table[event.name] = Operator(event.name)
        entry.calls += 1
        shapes = event.shapes
        entry.shapes[shapes] = entry.shapes.get(shapes, 0) + 1
        if shapes:
            entry.flops += flops
            entry.read_bytes += input_bytes(shapes, event.dtypes)
        if not device:
            _add(entry, phase, self_ns)
    for event, launcher, phase in work:
        name = launcher.name if launcher else event.name
        entry = table.setdefault(name, Operator(name))
        entry.kernels += 1
        if launcher is None:
            entry.calls += 1
        if device:
            _add(entry, phase, event.duration_ns)
    ordered = sorted(table.values(), key=lambda o: (-o.self_ns, o.name))
    if device:
        ordered = [o for o in ordered if o.kernels]
    busy = [event for event, _, _ in work] if device else operators
    profile = Profile(
        tuple(ordered),
        windows.wall_ns(),
        {name: windows.covered_ns(name, busy) for name in windows.names},
        _copies(event for event, _, _ in work if event.kind is Kind.COPY),
    )
    if profile.self_ns <= 0:
        raise ValueError("what was captured took no time")
    whole = sum(profile.share(operator) for operator in profile.operators)
    if abs(whole - 1.0) > SHARES_TOLERANCE:
        raise ValueError(f"the shares of all operators add up to {whole:.4f}, not 1")
    return profile


def self_times(operators: Sequence[Event]) -> list[int]:
    """Each event's duration without that of the calls directly inside it, in the order given.

    Raises
    ------
    ValueError
        If two events of a lane overlap without one holding the other.
    """
    own = [event.duration_ns for event in operators]
    for i, caller in _callers(operators):
        if caller is None:
            continue
        if operators[i].end_ns > operators[caller].end_ns:
            said = f"{operators[i].name} outlasts {operators[caller].name}, which called it"
            raise ValueError(said)
        own[caller] -= operators[i].duration_ns
    return own


def self_flops(operators: Sequence[Event]) -> list[int]:
    """Each event's operations without those that the calls inside it do, in the order given.

    One product is seen several times where a wrapper with the same shapes calls it.
    """
    flops = [
        event.flops or flops_of(event.name, event.shapes) if event.shapes else 0
        for event in operators
    ]
    if not any(flops):
        return flops
    inside = [0] * len(operators)
    # The innermost first: what is inside a call is known when it comes.
    for i, caller in reversed(_callers(operators)):
        if caller is not None:
            inside[caller] += max(flops[i], inside[i])
    return [max(0, all_of - inner) for all_of, inner in zip(flops, inside, strict=True)]


def _callers(operators: Sequence[Event]) -> list[tuple[int, int | None]]:
    """Each event and the one that called it, by their places; callers come before the called."""
    import numpy as np

    starts = [event.start_ns for event in operators]
    ends = [event.end_ns for event in operators]
    lanes = [event.lane for event in operators]
    # By lane, then by start; of calls that start together the outer one comes first.
    keys = (-np.array(ends, np.int64), np.array(starts, np.int64), np.array(lanes, np.int64))
    found: list[tuple[int, int | None]] = []
    open_calls: list[int] = []
    lane = None
    for i in np.lexsort(keys).tolist():
        if lanes[i] != lane:
            lane = lanes[i]
            open_calls.clear()
        while open_calls and ends[open_calls[-1]] <= starts[i]:
            open_calls.pop()
        found.append((i, open_calls[-1] if open_calls else None))
        open_calls.append(i)
    return found


def union_ns(starts: Any, ends: Any) -> int:
    """Length of what intervals, arrays of their edges (n,), cover together; overlaps count once."""
    import numpy as np

    if not len(starts):
        return 0
    order = np.argsort(starts, kind="stable")
    starts, reached = starts[order], np.maximum.accumulate(ends[order])
    # What each adds: from where the earlier ones have reached, or its own start if later.
    begins = np.maximum(starts[1:], reached[:-1])
    return int(reached[0] - starts[0] + np.maximum(reached[1:] - begins, 0).sum())


@lru_cache(maxsize=4096)
def input_bytes(shapes: Shapes, dtypes: tuple[str, ...]) -> int:
    """Bytes of the tensor inputs whose dtype is known."""
    return sum(
        prod(shape) * _ITEM_BYTES.get(dtype, 0)
        for shape, dtype in zip(shapes, dtypes, strict=False)
        if shape
    )


class _Windows:
    """The phases: which one a moment belongs to, and how much of each is covered."""

    def __init__(self, phases: list[Event]) -> None:
        if not phases:
            raise ValueError("no phase was marked")
        self._phases = sorted(phases, key=lambda phase: phase.start_ns)
        for before, after in zip(self._phases, self._phases[1:], strict=False):
            if after.start_ns < before.end_ns:
                raise ValueError(f"the phases {before.name} and {after.name} overlap")
        self._starts = [phase.start_ns for phase in self._phases]
        self.names = list(dict.fromkeys(phase.name for phase in self._phases))

    def within(
        self, events: Sequence[Event], cause: Callable[[Event], Event] = lambda event: event
    ) -> list[tuple[Event, str]]:
        """Those whose cause begins in a phase, each with that phase."""
        import numpy as np

        begins = (cause(event).start_ns for event in events)
        starts = np.fromiter(begins, np.int64, len(events))
        places = np.searchsorted(np.array(self._starts, np.int64), starts, side="right") - 1
        ends = np.array([phase.end_ns for phase in self._phases], np.int64)
        inside = np.flatnonzero((places >= 0) & (starts < ends[places])).tolist()
        return [(events[i], self._phases[places[i]].name) for i in inside]

    def wall_ns(self) -> dict[str, int]:
        wall = dict.fromkeys(self.names, 0)
        for phase in self._phases:
            wall[phase.name] += phase.duration_ns
        return wall

    def covered_ns(self, name: str, events: Sequence[Event]) -> int:
        """How much of the phase ``name`` at least one of the events covers."""
        import numpy as np

        starts = np.fromiter((event.start_ns for event in events), np.int64, len(events))
        ends = np.fromiter((event.end_ns for event in events), np.int64, len(events))
        covered = 0
        for window in self._phases:
            if window.name == name:
                first, last = window.start_ns, window.end_ns
                inside = (starts < last) & (ends > first)
                clipped = np.maximum(starts[inside], first), np.minimum(ends[inside], last)
                covered += union_ns(*clipped)
        return covered


def _add(entry: Operator, phase: str, self_ns: int) -> None:
    entry.self_ns += self_ns
    entry.phases[phase] = entry.phases.get(phase, 0) + self_ns


def _copies(events: Iterable[Event]) -> dict[str, Copies]:
    seen: dict[str, Copies] = {}
    for event in events:
        direction = next((d for d in ("HtoD", "DtoH", "DtoD") if d in event.name), "other")
        before = seen.get(direction, Copies(0, 0, 0))
        seen[direction] = Copies(
            before.count + 1,
            before.moved_bytes + event.moved_bytes,
            before.busy_ns + event.duration_ns,
        )
    return seen


_FOUR_BIT = ("bitsandbytes::gemv_4bit", "bitsandbytes::gemm_4bit")
_INT8 = ("bitsandbytes::int8_linear_matmul", "aten::_int_mm")


@lru_cache(maxsize=4096)
def flops_of(name: str, shapes: Shapes) -> int:
    """Of one call; 0 where they are not known.

    Parameters
    ----------
    shapes : tuple of tuple of int
        Attention: query (batch, heads, tokens, width), key and value (batch, heads, past, width);
        counted in full, as ``torch.utils.flop_counter`` does, whatever a causal mask hides.
        Four-bit products: input (..., inputs), weights of two values a byte. Eight-bit products:
        input (rows, inputs), weights of (inputs, outputs) or turned.
    """
    if name.startswith("aten::_scaled_dot_product_") and _have(shapes, 4, 4, 4):
        batch, heads, tokens, width = shapes[0]
        return 2 * batch * heads * tokens * shapes[1][2] * (width + shapes[2][3])
    if name in _FOUR_BIT and len(shapes) > 1 and shapes[0]:
        rows = prod(shapes[0][:-1])
        return 2 * rows * 2 * prod(shapes[1])
    if name in _INT8 and _have(shapes, 2, 2):
        rows = shapes[0][0]
        return 2 * rows * prod(shapes[1])
    return 0


def _have(shapes: Shapes, *dimensions: int) -> bool:
    return len(shapes) >= len(dimensions) and all(
        len(shape) == count for shape, count in zip(shapes, dimensions, strict=False)
    )
