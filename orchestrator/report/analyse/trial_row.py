"""One trial of a sweep's table: what it is, how it ended, what it measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.report.analyse.cell import Cell
from orchestrator.report.analyse.labels import label_of


@dataclass(frozen=True)
class TrialRow:
    """One trial of the sweep: what it is, how it ended, what it measured.

    Attributes
    ----------
    hash, label : str
        Config hash, and what tells the trial from the others of its sweep.
    axes : dict of str to value
        Where on each axis it lies.
    group : tuple of (str, value)
        Values of every axis but the baseline's: rows of one group are compared.
    baseline : bool
        Whether it is what the others of its group are compared with.
    outcome : str
        ``ok`` if any attempt was, else the last attempt's; ``not_run`` without one.
    reason : str or None
        Why it is not ``ok``.
    verdict : str
        The best of the attempts that count.
    attempts : int
        How many count.
    flags : tuple of str
        Rules that ask for doubt about attempts that count.
    cells : dict of str to Cell
        By metric.
    precision : str or None
        ``few samples`` or ``wide interval`` where sampling did not reach what the protocol asks.
    words : tuple of str
        What its task names of it that is no number, and its precision.
    """

    hash: str
    label: str
    axes: dict[str, Any]
    group: tuple[tuple[str, Any], ...]
    baseline: bool
    outcome: str
    reason: str | None
    verdict: str
    attempts: int
    flags: tuple[str, ...] = ()
    cells: dict[str, Cell] = field(default_factory=dict)
    precision: str | None = None
    words: tuple[str, ...] = ()

    @property
    def own_label(self) -> str:
        """The label without what the trial's whole group shares."""
        grouping = {axis for axis, _ in self.group}
        own = [axis for axis in self.axes if axis not in grouping]
        return label_of(self.axes, {}, own) if own and grouping else self.label

    @property
    def failed(self) -> bool:
        """Whether there is an ending to explain (a trial that never ran has none)."""
        return self.outcome not in ("ok", "not_run")
