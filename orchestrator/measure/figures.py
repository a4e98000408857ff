"""Figures that a task asks for in its report, as data: what to draw, never how.

A task lists them in ``Task.figures``; ``report/`` knows how to draw each kind::

    figures=(Bars("tpot_s"), Scaling("ttft_s", over="task.prompt_tokens"), Distribution("itl_s"))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Bars:
    """One metric of every trial with its interval, as bars grouped by the sweep's first axis."""

    metric: str


@dataclass(frozen=True)
class Scaling:
    """One metric along a numeric axis (an override such as ``task.prompt_tokens``), a line each
    for the other axes, what arithmetic predicts dashed beside it; drawn only where the sweep has
    that axis."""

    metric: str
    over: str


@dataclass(frozen=True)
class Distribution:
    """The empirical distribution of a metric's samples, a line a trial."""

    metric: str


@dataclass(frozen=True)
class Pareto:
    """Trials in the plane of two metrics, a third as colour; what nothing beats is marked."""

    x: str
    y: str
    colour: str | None = None


@dataclass(frozen=True)
class Breakdown:
    """Metrics that add up to a whole, stacked, one bar a trial."""

    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """The largest parts of a whole, one bar of 100 % a trial.

    ``fact`` names a fact that the task records: a list of ``{"name": str, "share": float}``.
    """

    fact: str
    title: str
    caption: str = ""


@dataclass(frozen=True)
class Curve:
    """Points that a task records as a fact, ``[[x, y], …]``, a line a trial."""

    fact: str
    title: str
    x: str
    y: str
    caption: str = ""


@dataclass(frozen=True)
class Waterfall:
    """The slowest requests of a trial, each from when it was due, part after part.

    ``fact`` names a fact that the task records, slowest first: a list of ``{"due_s": float,
    "parts_s": {name: seconds}}``.
    """

    fact: str
    title: str
    caption: str = ""


Figure: TypeAlias = Bars | Scaling | Distribution | Pareto | Breakdown | Ranking | Curve | Waterfall
