"""Dataclasses as JSON and back, by the types of their fields."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from orchestrator.measure.metric import Absent, Metric, Samples, Value
from orchestrator.measure.plain_json import from_json, to_json


class Colour(str, Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    cores: tuple[int, ...] = ()
    seen: float | str | None = None


@dataclass
class Outer:
    colour: Colour
    inner: Inner | None = None
    many: list[Inner] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    limit: float = 0.0


WHOLE = Outer(
    Colour.RED,
    Inner((1, 2), "often"),
    [Inner(), Inner((3,), 0.5)],
    {
        "a_s": Samples("a_s", "s", (1.0, 2.5), (9.0,), "ci"),
        "b": Value("b", "1", 3.0),
        "c_j": Absent("c_j", "J", "no GPU"),
    },
    {"kind": "anything", "deep": [{"x": None}]},
    2.0,
)


def test_what_goes_out_comes_back() -> None:
    plain = json.loads(json.dumps(to_json(WHOLE)))
    assert plain["metrics"]["b"] == {"kind": "value", "name": "b", "unit": "1", "value": 3.0}
    assert plain["inner"] == {"cores": [1, 2], "seen": "often"}
    assert from_json(Outer, plain) == WHOLE


def test_numbers_are_of_their_field_s_type() -> None:
    found = from_json(Outer, {"colour": "red", "limit": 3})
    assert isinstance(found.limit, float)
    assert found.inner is None


@pytest.mark.parametrize(
    "tree",
    [
        {"colour": "blue"},
        {"colour": "red", "limit": None},
        {"colour": "red", "limit": "far"},
        {"colour": "red", "surprise": 1},
        {"colour": "red", "many": None},
        {"colour": "red", "metrics": {"a": {"kind": "guess", "name": "a"}}},
        {"colour": "red", "metrics": {"a": {"name": "a"}}},
        {},
    ],
)
def test_a_wrong_tree_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError)):
        from_json(Outer, tree)
