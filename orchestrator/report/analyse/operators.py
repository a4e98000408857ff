"""Two profiles, operator by operator: what takes longer, appeared or is gone. Pure functions.

::

    operators.json of A ┐
                        ├─> self time, calls and share of each operator on both sides
    operators.json of B ┘   ordered by how much of the difference it makes

Self times of a side add up to its whole, so the differences add up to the whole difference. A
profile is one pass under a profiler: there is no interval, and nothing here is a verdict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: The artifact in which ``task=profile`` leaves its table.
OPERATORS_FILE = "operators.json"


@dataclass(frozen=True)
class OperatorSide:
    """One operator in one profile: self time, its share of all self time (0 to 1), calls."""

    self_s: float
    share: float
    calls: int


@dataclass(frozen=True)
class OperatorChange:
    """One operator in both profiles.

    Attributes
    ----------
    state : str
        ``both``, ``appeared`` (in B alone) or ``vanished`` (in A alone).
    a, b : OperatorSide or None
        None where the operator is not in that profile.
    delta_s : float
        Self time of B less that of A.
    ratio : float or None
        Self time of B over that of A; None unless both have any.
    """

    name: str
    state: str
    a: OperatorSide | None
    b: OperatorSide | None
    delta_s: float
    ratio: float | None


@dataclass(frozen=True)
class OperatorDiff:
    """Two profiles set against each other.

    Attributes
    ----------
    self_time_of : str
        ``host`` or ``device``: whose time it is on both sides.
    changes : tuple of OperatorChange
        Every operator of either side, the largest difference first.
    reason : str or None
        Why the two cannot be set against each other; then there are no changes.
    """

    hash_a: str
    hash_b: str
    self_time_of: str = ""
    self_s_a: float = 0.0
    self_s_b: float = 0.0
    changes: tuple[OperatorChange, ...] = ()
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form, every operator."""
        return asdict(self)


def diff_operators(
    hash_a: str, a: Mapping[str, Any], hash_b: str, b: Mapping[str, Any]
) -> OperatorDiff:
    """Set two tables of operators (``operators.json``) against each other."""
    if a["self_time_of"] != b["self_time_of"]:
        return OperatorDiff(
            hash_a,
            hash_b,
            reason=f"self time of the {a['self_time_of']} in A, of the {b['self_time_of']} in B",
        )
    sides = [{row["name"]: _side(row) for row in table["operators"]} for table in (a, b)]
    changes = [
        change_of(name, sides[0].get(name), sides[1].get(name))
        for name in dict.fromkeys([*sides[0], *sides[1]])
    ]
    changes.sort(key=lambda change: (-abs(change.delta_s), change.name))
    return OperatorDiff(
        hash_a, hash_b, str(a["self_time_of"]), a["self_s"], b["self_s"], tuple(changes)
    )


def read_operators(content: bytes) -> dict[str, Any] | None:
    """The table of an ``operators.json``; None where it is none."""
    try:
        table = json.loads(content)
        whole = {"self_time_of", "self_s", "operators"} <= table.keys()
    except (AttributeError, ValueError):
        return None
    return table if whole else None


def _side(row: Mapping[str, Any]) -> OperatorSide:
    return OperatorSide(float(row["self_s"]), float(row["share"]), int(row["calls"]))


def change_of(name: str, a: OperatorSide | None, b: OperatorSide | None) -> OperatorChange:
    """How one operator, or several taken together, differ between the two sides."""
    state = "both" if a and b else "appeared" if b else "vanished"
    before, after = (side.self_s if side else 0.0 for side in (a, b))
    ratio = after / before if a and b and before > 0 else None
    return OperatorChange(name, state, a, b, after - before, ratio)
