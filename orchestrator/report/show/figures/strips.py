"""What the machine did during one attempt: power, clocks, temperature, memory, load over time.

Panels above each other share the time axis; phases are shaded, throttling is a bar along the top.

Also when an attempt was slowed from outside: stretches of its telemetry, by what slowed it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.measure.metric import Phase
from orchestrator.report.show.figures.drawn import LEGEND_ABOVE, PALETTE, Drawn, drawn
from orchestrator.report.show.units import duration, scale_of
from orchestrator.telemetry.aggregate_gpu import REASON_BITS

if TYPE_CHECKING:
    from orchestrator.attempt import AttemptReport
    from orchestrator.telemetry.recorded_series import Histories, History


# Lows and highs of 80 stretches are what a strip of a page's width can show.
STRIP_POINTS = 160

# Neighbouring phases of one name are shaded as one when a screen could not part them.
_HAIR = 0.002
_MAX_SHADES = 120

_PANEL_PX = 96
_FRAME_PX = 130


@dataclass(frozen=True)
class Line:
    """One series: its metric, what a reader calls it, and whether its rate is what is shown."""

    metric: str
    name: str
    source: str = "host"
    rate: bool = False


@dataclass(frozen=True)
class Panel:
    """One strip: a title, the unit (SI) and the series that it may hold.

    ``first_only``: the lines are alternatives, the first that was read is shown.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    first_only: bool = False


_GPU_PANELS = (
    Panel(
        "power",
        "W",
        (
            Line("power_w", "power"),
            Line("power_average_w", "power, 1 s average"),
            Line("energy_j", "power from energy", rate=True),
        ),
        first_only=True,
    ),
    Panel("clocks", "Hz", (Line("sm_clock_hz", "SM"), Line("memory_clock_hz", "memory clock"))),
    Panel(
        "temp.",
        "°C",
        (Line("temperature_c", "temperature"), Line("memory_temperature_c", "memory temperature")),
    ),
    Panel("GPU mem.", "bytes", (Line("device_memory_bytes", "GPU memory"),)),
)

_HOST_PANELS = (
    Panel("power", "W", (Line("rapl_energy_j", "CPU package power", rate=True),)),
    Panel(
        "cores",
        "1",
        (
            Line("cpu_s", "cores used by the attempt", "process", rate=True),
            Line("busy_s", "by all on its cores", rate=True),
        ),
    ),
    Panel("clock", "Hz", (Line("cpu_frequency_hz", "CPU clock"),)),
    Panel(
        "memory",
        "bytes",
        (Line("rss_bytes", "resident", "process"), Line("pss_bytes", "proportional", "process")),
    ),
)


def draw_strips(report: AttemptReport, histories: Histories) -> Drawn | None:
    """The strips of one attempt, or None where nothing was read."""
    panels = [found for found in _panels(histories) if found[1]]
    if not panels:
        return None
    from plotly.subplots import make_subplots

    plot = make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.12 / len(panels)
    )
    end_s = max(float(h.t_s[-1]) for _, lines in panels for _, h in lines)
    colours = iter(PALETTE * 8)
    for at, (panel, lines) in enumerate(panels, start=1):
        scale = scale_of([float(h.values.max()) for _, h in lines], panel.unit)
        for name, history in lines:
            plot.add_scatter(
                row=at,
                col=1,
                name=name,
                x=[round(t, 3) for t in history.t_s.tolist()],
                y=[float(f"{v / scale.factor:.4g}") for v in history.values.tolist()],
                mode="lines",
                line={"width": 1.5, "color": next(colours)},
                hovertemplate=f"{name}: %{{y}} {scale.symbol}<extra></extra>",
            )
        title = f"{panel.title}<br>{scale.symbol}" if scale.symbol else panel.title
        plot.update_yaxes(row=at, col=1, title={"text": title, "font": {"size": 11}}, nticks=4)
        plot.update_yaxes(row=at, col=1, rangemode="normal" if panel.unit == "°C" else "tozero")
    marks = stretches(histories)
    shades = _shades(report.phases, histories.origin_ns, end_s)
    plot.update_layout(
        shapes=list(_shapes(shades, marks)),
        legend={**LEGEND_ABOVE, "font": {"size": 11}},
        showlegend=True,
        hovermode="x unified",
    )
    plot.update_xaxes(range=[0, end_s])
    plot.update_xaxes(row=len(panels), col=1, title="s since the attempt began")
    _add_keys(plot, shades, marks)
    title = f"a{report.number}, {duration(report.duration_s)}"
    return drawn(title, _caption(marks), plot, height_px=_FRAME_PX + len(panels) * _PANEL_PX)


def _panels(histories: Histories) -> Iterator[tuple[Panel, list[tuple[str, History]]]]:
    gpus = histories.gpus
    for at, uuid in enumerate(gpus):
        number = f" {at}" if len(gpus) > 1 else ""
        for panel in _GPU_PANELS:
            lines = [(f"{line.name}{number}", line, uuid) for line in panel.lines]
            yield panel, _lines(histories, panel, lines)
    for panel in _HOST_PANELS:
        lines = [(line.name, line, line.source) for line in panel.lines]
        yield panel, _lines(histories, panel, lines)


def _lines(
    histories: Histories, panel: Panel, lines: Sequence[tuple[str, Line, str]]
) -> list[tuple[str, History]]:
    found = []
    for name, line, source in lines:
        history = histories.get(source, line.metric)
        if history is None:
            continue
        if line.rate:
            history = history.rate()
        if len(history.values) < 2:
            continue
        found.append((name, history.thinned(STRIP_POINTS)))
        if panel.first_only:
            break
    return found


@dataclass(frozen=True)
class _Shade:
    name: str
    begin_s: float
    end_s: float
    measured: bool


def _shades(phases: Sequence[Phase], origin_ns: int | None, end_s: float) -> list[_Shade]:
    """Phases as stretches of the time axis, neighbours of one name joined where a hair parts them.

    A series stored without its origin cannot be laid beside the phases: none is shown then.
    """
    if origin_ns is None:
        return []
    shades: list[_Shade] = []
    for phase in phases:
        begin_s = (phase.begin_ns - origin_ns) / 1e9
        until_s = end_s if phase.end_ns is None else (phase.end_ns - origin_ns) / 1e9
        last = shades[-1] if shades else None
        if last and last.name == phase.name and begin_s - last.end_s <= _HAIR * end_s:
            shades[-1] = replace(last, end_s=until_s)
        else:
            shades.append(_Shade(phase.name, begin_s, until_s, phase.measured))
    # What is too short to be seen among hundreds goes first; the longest stay, in their order.
    longest = sorted(shades, key=lambda s: s.begin_s - s.end_s)[:_MAX_SHADES]
    kept = set(map(id, longest))
    return [shade for shade in shades if id(shade) in kept]


def _colours(shades: Sequence[_Shade]) -> dict[str, str]:
    names = list(dict.fromkeys(shade.name for shade in shades))
    return {name: PALETTE[at % len(PALETTE)] for at, name in enumerate(names)}


def _rectangle(span: _Shade | Stretch, colour: str, *, y0: float) -> dict[str, Any]:
    """A stretch of time over all panels, from ``y0`` (0 to 1) to the top."""
    return {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": round(span.begin_s, 3),
        "x1": round(span.end_s, 3),
        "y0": y0,
        "y1": 1,
        "fillcolor": colour,
    }


def _shapes(shades: Sequence[_Shade], marks: Sequence[Stretch]) -> Iterator[dict[str, Any]]:
    """Phases as shades below the lines, then throttling as bars along the top."""
    colours = _colours(shades)
    for shade in shades:
        yield {
            **_rectangle(shade, colours[shade.name], y0=0),
            "opacity": 0.22 if shade.measured else 0.1,
            "line": {"width": 0},
            "layer": "below",
        }
    for mark in marks:
        line = {"width": 1, "color": mark.colour}
        yield {**_rectangle(mark, mark.colour, y0=0.985), "line": line}


def _add_keys(plot: Any, shades: Sequence[_Shade], marks: Sequence[Stretch]) -> None:
    """Legend entries of what is drawn as shapes: plotly gives shapes none that can be grouped."""
    keys = [*_colours(shades).items(), *{mark.kind: mark.colour for mark in marks}.items()]
    for name, colour in keys:
        plot.add_scatter(
            row=1,
            col=1,
            x=[None],
            y=[None],
            name=name.replace("_", " "),
            mode="markers",
            marker={"symbol": "square", "size": 10, "color": colour, "opacity": 0.6},
            hoverinfo="skip",
        )


def _caption(marks: Sequence[Stretch]) -> str:
    spent: dict[str, float] = defaultdict(float)
    for mark in marks:
        spent[mark.kind] += mark.spent_s
    return ", ".join(f"{kind} {duration(seconds)}" for kind, seconds in spent.items())


_SEVERE, _MILD = "#b3261e", "#c77700"

# A busy machine is stolen a little from all the time: only what the verdict would mind is marked.
_STEAL_SHARE = 0.05


@dataclass(frozen=True)
class Stretch:
    """A time in which something slowed the attempt.

    Attributes
    ----------
    begin_s, end_s : float
        On the telemetry's time axis.
    spent_s : float
        Seconds slowed within it, by the counter; its length where only samples tell.
    """

    kind: str
    colour: str
    begin_s: float
    end_s: float
    spent_s: float


# Counter -> what a reader calls it; a GPU's, or the host's.
_GPU_COUNTERS = {
    "throttle_sw_thermal_s": ("thermal slowdown", _SEVERE),
    "throttle_hw_thermal_s": ("thermal slowdown", _SEVERE),
    "throttle_thermal_policy_s": ("thermal slowdown", _SEVERE),
    "throttle_power_brake_s": ("power brake", _SEVERE),
    "throttle_power_cap_s": ("power cap", _MILD),
}
# A driver that tells both counts the same seconds twice.
_OLDER = {"throttle_thermal_policy_s": ("throttle_sw_thermal_s", "throttle_hw_thermal_s")}
_HOST_COUNTERS = {
    "cgroup_throttled_s": ("throttled by its cgroup", _SEVERE, 0.0),
    "steal_s": ("CPU time stolen", _SEVERE, _STEAL_SHARE),
}
# What only the sampled reasons show where the counters are missing, or always.
_REASONS = {
    "thermal": (
        "thermal slowdown",
        _SEVERE,
        ("throttle_sw_thermal_s", "throttle_thermal_policy_s"),
    ),
    "power_brake": ("power brake", _SEVERE, ("throttle_power_brake_s",)),
    "power_cap": ("power cap", _MILD, ("throttle_power_cap_s",)),
    "hardware": ("hardware slowdown", _SEVERE, ()),
}


def stretches(histories: Histories) -> list[Stretch]:
    """Every stretch in which a counter rose or a reason was seen, neighbours joined."""
    found: list[Stretch] = []
    for uuid in histories.gpus:
        for metric, (kind, colour) in _GPU_COUNTERS.items():
            if any(histories.get(uuid, newer) for newer in _OLDER.get(metric, ())):
                continue
            history = histories.get(uuid, metric)
            if history is not None:
                found.extend(_risen(history, kind, colour, 0.0))
        seen = histories.get(uuid, "clocks_event_reasons")
        for reason, (kind, colour, counters) in _REASONS.items():
            if seen is not None and not any(histories.get(uuid, c) for c in counters):
                found.extend(_sampled(seen, REASON_BITS[reason], kind, colour))
    for metric, (kind, colour, share) in _HOST_COUNTERS.items():
        history = histories.get("host", metric)
        if history is not None:
            found.extend(_risen(history, kind, colour, share))
    return sorted(_joined(found), key=lambda stretch: (stretch.begin_s, stretch.kind))


def _risen(history: History, kind: str, colour: str, share: float) -> Iterator[Stretch]:
    """Between two readings of a counter that rose by more than ``share`` of the time."""
    times, values = history.t_s.tolist(), history.values.tolist()
    for at in range(1, len(times)):
        spent, gap = values[at] - values[at - 1], times[at] - times[at - 1]
        if spent > max(share * gap, 0.0):
            yield Stretch(kind, colour, times[at - 1], times[at], spent)


def _sampled(history: History, bits: int, kind: str, colour: str) -> Iterator[Stretch]:
    times, values = history.t_s.tolist(), history.values.tolist()
    for at in range(1, len(times)):
        if int(values[at]) & bits:
            yield Stretch(kind, colour, times[at - 1], times[at], times[at] - times[at - 1])


def _joined(found: list[Stretch]) -> list[Stretch]:
    joined: dict[str, list[Stretch]] = {}
    for one in sorted(found, key=lambda stretch: stretch.begin_s):
        of_kind = joined.setdefault(one.kind, [])
        if of_kind and one.begin_s <= of_kind[-1].end_s:
            last = of_kind[-1]
            end_s, spent_s = max(last.end_s, one.end_s), last.spent_s + one.spent_s
            of_kind[-1] = replace(last, end_s=end_s, spent_s=spent_s)
        else:
            of_kind.append(one)
    return [stretch for of_kind in joined.values() for stretch in of_kind]
