"""Draws a history on the terminal: a line a trial, then every step with what differed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.measure.grouping import grouped
from orchestrator.measure.wording import counted
from orchestrator.report.analyse.history import History, Series, Step
from orchestrator.report.analyse.labels import SEPARATOR
from orchestrator.report.show.parts import filled, interval_text, numbers, words
from orchestrator.report.show.style import STANDING_MARKS
from orchestrator.report.show.units import ratio, scale_of, utc, with_ci

MAX_TRIALS = 60
MAX_CAUSES = 12
NOT_POSITIVE = "a median is not positive, so there are no ratios"
NOTHING_DIFFERS = "nothing recorded differs"
_MOST_DIFFERENCES = 4
_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 16
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
        yield _trials(history, shown, is_wide=options.max_width >= 90)
        if len(history.series) > len(shown):
            left = counted(len(history.series) - len(shown), "trial")
            yield Text(f"… and {left} without a step (--json)", style="italic")
        causes = causes_of(history)
        if causes:
            yield Text("\nsteps, newest first", style="dim")
        for cause in causes[:MAX_CAUSES]:
            yield from _lines(history, cause)
        if len(causes) > MAX_CAUSES:
            yield Text(f"… and those of {len(causes) - MAX_CAUSES} more runs (--json)", "italic")


@dataclass(frozen=True)
class Cause:
    """Steps that share when they came and what differed: as far as is known, one cause.

    Attributes
    ----------
    when : str
    differences : tuple of str
    steps : list of (Series, Step)
    """

    when: str
    differences: tuple[str, ...]
    steps: list[tuple[Series, Step]]

    @property
    def command(self) -> str | None:
        """What would find the culprit, from the largest of the steps: it shows best."""
        series, step = max(self.steps, key=lambda each: abs(math.log(each[1].judged.ratio or 1.0)))
        return step.command(series.spec.name)


def causes_of(history: History) -> list[Cause]:
    """Every step, those of one cause together, newest first."""

    def cause(each: tuple[Series, Step]) -> tuple[str, tuple[str, ...]]:
        series, step = each
        return series.points[step.place].run, tuple(map(str, step.differences))

    return [
        Cause(when(history, min(map(_since, steps))), told, steps)
        for (_, told), steps in grouped(history.steps, cause).items()
    ]


def _since(each: tuple[Series, Step]) -> float:
    series, step = each
    return series.points[step.place].started_at


def span_of(history: History) -> str:
    """What the history covers, in a line."""
    times = [point.started_at for series in history.series for point in series.points]
    runs = {point.run for series in history.series for point in series.points}
    return (
        f"{counted(len(history.series), 'trial')} in {counted(len(runs), 'run')}, "
        f"{when(history, min(times))} to {when(history, max(times))} (UTC): "
        + ", ".join(_titles(history))
    )


def when(history: History, unix_s: float) -> str:
    """A run's moment, as precise as it takes to tell the runs apart."""
    return utc(unix_s, history.named_by)


def name_of(history: History, series: Series) -> str:
    """A trial by its label, and its machine where there are several."""
    return (
        f"{series.label}{SEPARATOR}{series.machine}"
        if history.has_several_machines
        else series.label
    )


def moved(series: Series, step: Step) -> str:
    """The two levels of a step, in one unit: ``40.7 → 44.8 ms``."""
    scale = scale_of([step.before, step.after], series.spec.unit)
    return f"{scale.number(step.before)} → {scale.text(step.after)}"


def news_of(history: History) -> str:
    """What the last run brought."""
    found = len(history.new_regressions)
    return f"{counted(found, 'new regression') if found else 'no new regression'} in the last run"


def left_out_line(history: History) -> str:
    """What does not count, by why; empty where all does."""
    said = []
    if history.left_out:
        why = ", ".join(f"{count} {reason}" for reason, count in history.left_out.items())
        said.append(f"left out: {counted(sum(history.left_out.values()), 'attempt')} ({why})")
    if blind := history.not_judged:
        said.append(f"not judged: {counted(len(blind), 'trial')} ({NOT_POSITIVE})")
    return "; ".join(said)


def spark(series: Series) -> str:
    """The medians as bars, several runs to one where there are many; the last run has its own."""
    medians = [point.median for point in series.points if not point.is_alone]
    if min(medians, default=0.0) <= 0.0:
        return ""
    logs = list(map(math.log, medians))
    bars = min(_SPARK_WIDTH, len(logs))
    edges = [round(at * (len(logs) - 1) / max(bars - 1, 1)) for at in range(bars)] + [len(logs)]
    heights = [sum(logs[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(heights), max(heights)
    height = max(high - low, _LEAST_HEIGHT)
    bottom = (low + high - height) / 2.0
    most = len(_BARS) - 1
    return "".join(_BARS[round(most * (each - bottom) / height)] for each in heights)


def _trials(history: History, found: list[Series], *, is_wide: bool) -> Table:
    columns = [
        (words("trial", no_wrap=False), [Text(name_of(history, series)) for series in found]),
        (numbers("runs"), [Text(str(len(series.points))) for series in found]),
        (numbers("last run"), [Text(_last(series)) for series in found]),
        (words("last step"), [_last_step(history, series) for series in found]),
    ]
    if is_wide:
        columns.insert(2, (words("over time"), [Text(spark(series)) for series in found]))
    if len(_titles(history)) > 1:
        columns.insert(1, (words(""), [Text(series.spec.title) for series in found]))
    return filled(columns)


def _titles(history: History) -> list[str]:
    return list(dict.fromkeys(series.spec.title for series in history.series))


def _last(series: Series) -> str:
    point = series.points[-1]
    return with_ci(point.median, point.ci_low, point.ci_high, series.spec.unit)


def _last_step(history: History, series: Series) -> Text:
    if not series.steps:
        return Text("none" if series.levels else "not judged", style="dim")
    step = series.steps[-1]
    mark, style, _ = STANDING_MARKS[step.judged.finding]
    at = when(history, _since((series, step)))
    text = Text(f"{mark} {ratio(step.judged.ratio)} since {at}", style)
    return text.append(" new", "bold") if step.is_new else text


def _lines(history: History, cause: Cause) -> Iterator[RenderableType]:
    more = len(cause.differences) - _MOST_DIFFERENCES
    said = [*cause.differences[:_MOST_DIFFERENCES], *([f"{more} more"] if more > 0 else [])]
    yield Text.assemble((f"{cause.when}  ", "bold"), ", ".join(said) or NOTHING_DIFFERS)
    marks = [STANDING_MARKS[step.judged.finding] for _, step in cause.steps]
    lines = filled(
        [
            (words(no_wrap=False), [Text(name_of(history, series)) for series, _ in cause.steps]),
            (words(), [Text(series.spec.title) for series, _ in cause.steps]),
            (numbers(), [Text(moved(series, step)) for series, step in cause.steps]),
            (numbers(), [Text(ratio(step.judged.ratio)) for _, step in cause.steps]),
            (words(), [Text(interval_text(s.judged), style="dim") for _, s in cause.steps]),
            (words(), [Text(f"{mark} {word}", style=style) for mark, style, word in marks]),
            (words(), [Text("new" if step.is_new else "", "bold") for _, step in cause.steps]),
        ]
    )
    yield Padding(lines, (0, 0, 0, 2))
    if cause.command:
        head, good, rest = cause.command.partition(" --good")
        yield Padding(Text(f"{head} \\\n  {good.strip()}{rest}"), (0, 0, 0, 2))
