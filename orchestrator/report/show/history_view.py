"""Draws a history on the terminal: a line a trial, then every step with what differed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.text import Text

from orchestrator.measure.wording import counted
from orchestrator.report.analyse.history import History, Series, Step
from orchestrator.report.analyse.labels import SEPARATOR, short_hash
from orchestrator.report.show.parts import filled, numbers, words
from orchestrator.report.show.style import STANDING_MARKS
from orchestrator.report.show.units import quantity, ratio, utc, with_ci

MAX_TRIALS = 60
MAX_STEPS = 30
_MOST_DIFFERENCES = 6
_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 24
# The whole height of a sparkline is at least this much: noise must not look like mountains.
_LEAST_HEIGHT = math.log(1.25)


@dataclass(frozen=True)
class HistoryView:
    """A :class:`History` that rich can print."""

    history: History

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        history = self.history
        style = "bold red" if history.new_regressions else "bold green"
        yield Text.assemble((f"{history.word} over time: ", "bold"), (news_of(history), style))
        yield Text(span_of(history), style="dim")
        if line := left_out_line(history):
            yield Text(line, style="dim")
        yield Text("")
        shown = sorted(history.series, key=lambda series: not series.steps)[:MAX_TRIALS]
        yield _trials(shown, is_wide=options.max_width >= 90)
        if len(history.series) > len(shown):
            left = counted(len(history.series) - len(shown), "trial")
            yield Text(f"… and {left} without a step (--json)", style="italic")
        steps = history.steps
        if not steps:
            return
        yield Text("\nsteps, newest first", style="dim")
        for series, step in steps[:MAX_STEPS]:
            yield from _step(series, step)
        if len(steps) > MAX_STEPS:
            yield Text(f"… and {len(steps) - MAX_STEPS} more (--json)", style="italic")


def span_of(history: History) -> str:
    """What the history covers, in a line."""
    times = [point.at for series in history.series for point in series.points]
    runs = {point.run for series in history.series for point in series.points}
    return (
        f"{counted(len(history.series), 'trial')} in {counted(len(runs), 'run')}, "
        f"{utc(min(times))} to {utc(max(times))} (UTC); the median of each run with its interval"
    )


def news_of(history: History) -> str:
    """What the last run brought."""
    found = len(history.new_regressions)
    return f"{counted(found, 'new regression') if found else 'no new regression'} in the last run"


def left_out_line(history: History) -> str:
    """Attempts that do not count, by why; empty where all do."""
    if not history.left_out:
        return ""
    why = ", ".join(f"{count} {reason}" for reason, count in history.left_out.items())
    return f"left out: {counted(sum(history.left_out.values()), 'attempt')} ({why})"


def interval_of(step: Step) -> str:
    """The interval of a step's ratio; empty where there is none."""
    low, high = step.judged.ci_low, step.judged.ci_high
    if low is None or high is None:
        return ""
    return "exact" if low == high else f"{low:.3f} – {high:.3f}"


def spark(series: Series) -> str:
    """The medians as bars, several runs to one where there are many."""
    medians = [point.median for point in series.points if not point.is_alone]
    if min(medians, default=0.0) <= 0.0:
        return ""
    logs = list(map(math.log, medians))
    width = min(_SPARK_WIDTH, len(logs))
    edges = [round(at * len(logs) / width) for at in range(width + 1)]
    heights = [
        sum(logs[a:b]) / (b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    low, high = min(heights), max(heights)
    height = max(high - low, _LEAST_HEIGHT)
    bottom = (low + high - height) / 2.0
    most = len(_BARS) - 1
    return "".join(_BARS[round(most * (each - bottom) / height)] for each in heights)


def _trials(found: list[Series], *, is_wide: bool) -> object:
    several = len({series.machine for series in found}) > 1
    columns = [
        (
            words("trial", no_wrap=False),
            [Text(s.label + (f"{SEPARATOR}{s.machine}" if several else "")) for s in found],
        ),
        (words("", min_width=4), [Text(s.spec.title) for s in found]),
        (numbers("runs"), [Text(str(len(s.points))) for s in found]),
        (words("over time"), [Text(spark(s)) for s in found]),
        (numbers("last run"), [Text(_last(s)) for s in found]),
        (words("last step"), [_last_step(s) for s in found]),
    ]
    return filled(column for at, column in enumerate(columns) if is_wide or at != 3)


def _last(series: Series) -> str:
    point = series.points[-1]
    return with_ci(point.median, point.ci_low, point.ci_high, series.spec.unit)


def _last_step(series: Series) -> Text:
    if not series.steps:
        return Text("none", style="dim")
    step = series.steps[-1]
    mark, style, _ = STANDING_MARKS[step.judged.finding]
    text = Text(f"{mark} {ratio(step.judged.ratio)} on {utc(series.points[step.at].at)}", style)
    return text.append(" new", "bold") if step.is_new else text


def _step(series: Series, step: Step) -> Iterator[Text | Padding]:
    mark, style, word = STANDING_MARKS[step.judged.finding]
    unit = series.spec.unit
    first = Text.assemble(
        f"  {utc(series.points[step.at].at)}  ",
        (series.label, "bold"),
        f"  {short_hash(step.bad.config_hash)}  {series.spec.title} "
        f"{quantity(step.before, unit)} → {quantity(step.after, unit)}  ",
        (f"{ratio(step.judged.ratio)} {mark} {word}", style),
    )
    if interval := interval_of(step):
        first.append(f"  [{interval}]", "dim")
    yield first
    told = list(map(str, step.differences[:_MOST_DIFFERENCES]))
    if len(step.differences) > len(told):
        told.append(f"and {len(step.differences) - len(told)} more")
    differed = ", ".join(told) or "nothing recorded differs"
    yield Padding(Text(differed, style="dim"), (0, 0, 0, 6))
    if command := step.command(series.spec.name):
        head, good, rest = command.partition(" --good")
        yield Padding(Text(f"{head} \\\n    {good.strip()}{rest}"), (0, 0, 0, 6))
