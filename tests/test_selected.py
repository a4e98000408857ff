"""What commands about recorded attempts call the trials they are about."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.commands.selected import labels_of_configs
from orchestrator.record.selection import Selection
from testing.trial import make_identity


def labels(*identities: dict[str, Any]) -> list[str]:
    configs = {str(at): identity for at, identity in enumerate(identities)}
    return list(labels_of_configs(Selection("a", {}, configs)).values())


SERVED = {"task": "serving", "engine": "endpoint"}


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({}, {"device": {"kind": "cpu", "threads": None}}, ("threads 1", "threads auto")),
        ({}, {"seed": 7}, ("seed 0", "seed 7")),
        ({}, {"protocol": {"warmup": 5}}, ("warmup 1", "warmup 5")),
        ({}, {"model": {"source": "random", "revision": "v2"}}, ("", "revision v2")),
        # A package is told with the differences of software, a format by the plain label.
        ({"environment": {"packages": {"a": "1"}}}, {"environment": {"packages": {}}}, ("", "")),
    ],
)
def test_trials_are_told_apart_by_whatever_they_differ_in(
    one: dict[str, Any], other: dict[str, Any], told: tuple[str, str]
) -> None:
    plain = "inference · transformers · random · fp32"
    whole = [{**make_identity(), **changed} for changed in (one, other)]
    assert labels(*whole) == [" · ".join(filter(None, (plain, text))) for text in told]


def test_options_without_a_value_are_not_told() -> None:
    closed, opened = (make_identity("source", load=load, **SERVED) for load in ("closed", "open"))
    first, second = labels(closed, opened)
    assert first == "serving · endpoint · random · source · kind closed · concurrency 1"
    assert second.startswith("serving · endpoint · random · source · kind open · ")
    assert "rate 1" in second
    assert "none" not in second
