"""The colours and marks of everything printed; each says with a sign what it says with a colour.

NO_COLOR, colour-blind readers and CI logs lose nothing: marks differ by shape.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from orchestrator.attempt import Outcome
from orchestrator.statistics.judge import Finding, Judged

if TYPE_CHECKING:
    from rich.console import Console

OUTCOME_STYLE = {
    Outcome.OK.value: "green",
    Outcome.INVALID.value: "yellow",
    Outcome.OOM_DEVICE.value: "red",
    Outcome.OOM_HOST.value: "red",
    Outcome.TIMEOUT.value: "red",
    Outcome.CRASHED.value: "red",
    Outcome.ERROR.value: "red",
    Outcome.INFEASIBLE.value: "magenta",
    Outcome.LOST.value: "yellow",
    Outcome.CANCELLED.value: "yellow",
}

#: verdict -> (mark, style, what it means)
VERDICT_MARKS = {
    "valid": ("✓", "green", "telemetry saw nothing wrong"),
    "flagged": ("!", "yellow", "see its rules in `show`"),
    "invalid": ("✗", "red", "not to be believed"),
    "unverified": ("?", "dim", "telemetry could not check it"),
}

#: finding of the judge, worst first -> (mark, style, the word for it in every view)
STANDING_MARKS: dict[Finding, tuple[str, str, str]] = {
    "regression": ("▼", "red", "worse"),
    "inconclusive": ("~", "yellow", "undecided"),
    "incomparable": ("?", "magenta", "incomparable"),
    "improvement": ("▲", "green", "better"),
    "equivalent": ("=", "dim", "same"),
}

STANDING_STYLES: dict[str, str] = {finding: mark[1] for finding, mark in STANDING_MARKS.items()}


def standings_legend(tau: float) -> str:
    """What marks before ratios mean: ``▲ better, ▼ worse, = same (within 3 %), ~ undecided``."""
    order: tuple[Finding, ...] = ("improvement", "regression", "equivalent", "inconclusive")
    better, worse, same, open_ = (" ".join(STANDING_MARKS[each][::2]) for each in order)
    return f"{better}, {worse}, {same} (within {100 * tau:.3g}\u00a0%), {open_}"


def standing_mark(judged: Judged, better: str | None) -> str:
    """The mark before a ratio; none where no change is known to be good or bad."""
    plain = judged.finding == "inconclusive" and better is None
    return "" if plain else STANDING_MARKS[judged.finding][0]


def is_live(console: Console) -> bool:
    """Whether lines may be redrawn: a real terminal, not a dumb one, not the log of a CI job.

    rich lets FORCE_COLOR pretend that a pipe is a terminal; colours may be forced, redrawing not.
    A CI service may give its job a terminal, and yet keep every line that was ever drawn.
    """
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    try:
        tty = console.file.isatty()
    except (AttributeError, ValueError):
        tty = False
    return bool(tty and console.is_terminal and not console.is_dumb_terminal)
