"""Draws a :class:`Board` for a terminal of a given size: bar, counts, slots, what ails."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from orchestrator.measure.wording import counted
from orchestrator.report.show.board import Board, Running
from orchestrator.report.show.style import OUTCOME_STYLE
from orchestrator.report.show.units import duration, span

_LEAST_BAR = 8
_MOST_BAR = 48
_MOST_PHASE = 44
_BETWEEN = " · "
_MOST_PROBLEMS = 4
_MOST_CONDITIONS = 2


def draw(board: Board, now_s: float, *, width: int, height: int) -> Text:
    """The board as text of at most ``width`` columns and ``height`` lines."""
    lines = _header(board, now_s, width)
    # A low terminal is for what runs; otherwise what is wrong with the machine comes first.
    lines += _conditions(board, width, min(_MOST_CONDITIONS, height // 8))
    room = max(height - len(lines), 0)
    wanted = min(len(board.problems), _MOST_PROBLEMS)
    # Problems first get two lines, then slots get what they need, then more problems.
    slots = _slots(board, now_s, width, max(room - min(wanted, 2), 1))
    problems = _problems(board, width, min(wanted, max(room - len(slots), 0)))
    return Text("\n").join((lines + slots + problems)[: max(height, 1)])


def counts(board: Board) -> list[tuple[str, str]]:
    """``(text, style)`` of every count that is not zero, in the order they are read."""
    invalid = board.outcomes["invalid"]
    found = [
        (board.ok, "ok", "green"),
        (board.failed - invalid, "failed", "red"),
        (invalid, "invalid", "yellow"),
        (board.flagged, "flagged", "yellow"),
        (len(board.running), "running", "cyan"),
        (board.waiting, "waiting", ""),
        (board.cached, "cached", "dim"),
    ]
    said = [(f"{number} {word}", style) for number, word, style in found if number]
    # Nothing can be handed out before the cluster is there; that takes seconds.
    return said if board.submitted else [*said, ("starting the cluster", "dim")]


def _header(board: Board, now_s: float, width: int) -> list[Text]:
    done = f"{board.cached + board.finished}/{board.cached + board.todo}"
    elapsed = seconds(now_s - board.started_s)
    left = board.remaining_s(now_s)
    eta = f"ETA {span(*left)}" if left is not None and (board.waiting or board.running) else ""
    name = _cut(board.sweep, max(width // 3, 8))
    tail = "  ".join(part for part in (done, elapsed, eta) if part)
    lines = []
    bar = width - cell_len(name) - cell_len(tail) - 4
    if bar < _LEAST_BAR:
        lines.append(Text(_cut(f"{name}  {tail}", width), style="bold"))
        lines.append(_bar(board, min(width, _MOST_BAR)))
    else:
        line = Text(f"{name}  ", style="bold")
        line.append_text(_bar(board, min(bar, _MOST_BAR)))
        line.append(f"  {tail}", style="not bold")
        lines.append(line)
    return lines + _counts(board, width)


def _counts(board: Board, width: int) -> list[Text]:
    lines = [Text()]
    for text, style in counts(board):
        if len(lines[-1]) and len(lines[-1]) + len(_BETWEEN) + len(text) > width:
            lines.append(Text())
        if len(lines[-1]):
            lines[-1].append(_BETWEEN, style="dim")
        lines[-1].append(text, style=style)
    return lines


def _bar(board: Board, width: int) -> Text:
    """Shares of the sweep as a line: cached, ok, failed, running, not yet."""
    whole = max(board.cached + board.todo, 1)
    shares = (
        (board.cached, "─", "dim"),
        (board.ok, "━", "green"),
        (board.failed, "━", "red"),
        (len(board.running), "╌", "cyan"),
        (board.waiting, "╌", "dim"),
    )
    text = Text()
    seen = position = 0
    for number, sign, style in shares:
        seen += number
        # Rounding the running sum and not each share: the bar is always `width` long.
        end = round(width * seen / whole)
        text.append(sign * (end - position), style=style)
        position = end
    return text


def _conditions(board: Board, width: int, room: int) -> list[Text]:
    """Throttling and the like, the most frequent first."""
    worst = sorted(board.conditions.values(), key=lambda c: -c.attempts)[:room]
    lines = []
    for condition in worst:
        number = condition.attempts
        line = Text("! ", style="yellow")
        line.append(f"{condition.rule}  {counted(number, 'attempt')}")
        line.append(f"  {condition.where}: {condition.said}", style="dim")
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines


def _slots(board: Board, now_s: float, width: int, room: int) -> list[Text]:
    running = sorted(board.running.values(), key=lambda r: r.since_s)
    shown = running if len(running) <= room else running[: max(room - 1, 0)]
    one_host = len({r.host for r in running}) <= 1
    wheres = [_where(r, named=not one_host and width >= 72) for r in shown]
    where_width = min(max(map(cell_len, wheres), default=0), max(width // 3, 10))
    elapsed = [seconds(now_s - r.since_s) for r in shown]
    elapsed_width = max(map(len, elapsed), default=0)
    phase_width = min(max((len(r.phase) for r in shown), default=0), _MOST_PHASE, width // 2)
    # As wide as the labels are: on a wide terminal the eye need not travel to the phase.
    label_width = min(
        width - 2 - where_width - phase_width - elapsed_width - 6,
        max((cell_len(r.label) for r in shown), default=0),
    )
    lines = []
    for item, where, took in zip(shown, wheres, elapsed, strict=True):
        line = Text("  ")
        line.append(_fit(where, where_width) + "  ", style="dim")
        line.append(_fit(item.label, max(label_width, 8)) + "  ")
        line.append(_fit(item.phase, phase_width), style="cyan")
        line.append(f"  {took:>{elapsed_width}}", style="dim")
        line.truncate(width)
        lines.append(line)
    if len(running) > len(shown):
        more = len(running) - len(shown)
        lines.append(Text(f"  … and {more} more running" if shown else f"  {more} running", "dim"))
    return lines


def _problems(board: Board, width: int, room: int) -> list[Text]:
    if room <= 0:
        return []
    lines = []
    for problem in list(board.problems)[-room:]:
        line = Text("✗ ", style=OUTCOME_STYLE.get(problem.outcome, "red"))
        line.append(problem.outcome)
        line.append(f"  {problem.label}  ", style="default")
        line.append(problem.reason, style="dim")
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines


def _where(running: Running, *, named: bool) -> str:
    parts: Sequence[str] = (running.host, running.device) if named else (running.device,)
    return " ".join(part for part in parts if part) or running.host


def seconds(value_s: float) -> str:
    """An elapsed time in whole seconds: a tenth would make every frame differ from the last."""
    return f"{max(value_s, 0):.0f} s" if value_s < 99.5 else duration(value_s)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)) + "…"


def _fit(text: str, width: int) -> str:
    return set_cell_size(_cut(text, width), width)
