"""One line on why an attempt's numbers are missing or not to be believed. Pure text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from orchestrator.attempt import AttemptReport
from orchestrator.measure.grouping import grouped


class Ended(Protocol):
    """What ended: how, and why if it is known."""

    @property
    def outcome(self) -> str: ...
    @property
    def reason(self) -> str | None: ...


Failure = TypeVar("Failure", bound=Ended)

# Control sequences of a captured log must not reach the person's terminal.
_CONTROL = re.compile(
    r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)


def one_line(text: str) -> str:
    """``text`` without control characters and line breaks."""
    return " ".join(_CONTROL.sub("", text).split())


def why(report: AttemptReport) -> str:
    """Why this attempt is not ``ok``: its reason, else the verdict rule that was broken."""
    if report.reason:
        return one_line(report.reason)
    broken = [rule for rule in report.verdict.rules if rule.state == "invalid"]
    if broken:
        rule = broken[0]
        return one_line(rule.reason or f"{rule.rule}: {rule.value}, limit {rule.limit}")
    return "no reason given"


def reasons_once(failures: Sequence[Failure]) -> Iterator[tuple[Failure, str]]:
    """Those that ended alike after one another, a reason of many lines told once."""
    for (_, reason), rows in grouped(failures, lambda row: (row.outcome, row.reason)).items():
        for index, row in enumerate(rows):
            yield row, "as above" if reason and index else reason or ""
