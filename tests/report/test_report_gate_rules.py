"""A gate's rules as data: those that ship, mistakes in a file, conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import ConfigError
from orchestrator.report.analyse.gate_rules import (
    Condition,
    Difference,
    LongOverShort,
    all_but,
    load_rules,
    value_at,
)

CONF = Path(__file__).resolve().parents[2] / "conf" / "gate"
DIFFERENCE = {"kind": "difference", "metrics": ["tpot_s"]}
CHANGE = {"kind": "change", "metric": "tpot_s"}
SHORT, LONG = (
    {"task": {"name": "inference", "new_tokens": new_tokens}, "device": {"kind": "cpu"}}
    for new_tokens in (64, 512)
)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_rules_that_ship_load(path: Path) -> None:
    found = load_rules(path)
    assert found.name == path.stem
    assert found.description
    assert found.rules


def test_the_rules_that_ship_are_both_kinds() -> None:
    kinds = {p.stem: {type(rule) for rule in load_rules(p).rules} for p in CONF.glob("*.yaml")}
    assert Difference in kinds["default"]
    assert LongOverShort in kinds["llm_baseline"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": []}, "rules: must have at least 1"),
        ({"rule": [], "rules": [DIFFERENCE]}, "rule: unknown key. Did you mean rules?"),
        ({"tolerance": 0.05}, "tolerance: unknown key. Known: description, rules"),
        ({"rules": ["load_s"]}, r"rules\[0\]: must be a mapping, not 'load_s'"),
        (
            {"rules": [{"kind": "drop"}]},
            r"rules\[0\]: 'kind' must be one of 'completes'.*, not 'drop'",
        ),
        ({"rules": [{"kind": "limit"}]}, r"rules\[0\]\.limit\.metric: must be given"),
        (
            {"rules": [{"kind": "limit", "metric": "load_s"}]},
            r"rules\[0\]\.limit: needs at_most or at_least",
        ),
        (
            {"rules": [{"kind": "change", "metric": "load_s"}]},
            r"rules\[0\]\.change: needs max_increase or max_decrease",
        ),
        (
            {"rules": [{"kind": "limit", "metric": "load_s", "at_mots": 1}]},
            r"limit\.at_mots: unknown key. Did you mean at_most\?",
        ),
        (
            {"rules": [{"kind": "limit", "metric": "x", "at_most": 1, "statistic": "p90"}]},
            r"statistic: must be 'median', .* or 'p99', not 'p90'",
        ),
        (
            {"rules": [{"kind": "change", "metric": "x", "max_increase": -0.1}]},
            r"max_increase: must be greater than or equal to 0, not -0.1",
        ),
        (
            {"rules": [{**CHANGE, "max_decrease": 12}]},
            r"max_decrease: must be less than 1, not 12",
        ),
        (
            {"rules": [{"kind": "completes", "when": {"seed": {"at_least": 2, "at_most": 1}}}]},
            r"when\.seed: nothing is at_least 2 and at_most 1",
        ),
        (
            {"rules": [{"kind": "completes", "when": {"task.new_tokens": {"below": 3}}}]},
            r"when.task.new_tokens.below: unknown key. Known: at_least, at_most",
        ),
    ],
)
def test_a_mistake_in_the_rules_is_named_with_its_place(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    data = {"rules": [DIFFERENCE], **change}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=message) as error:
        load_rules(path)
    assert str(error.value).startswith(str(path))


def test_a_file_that_is_no_rules_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no such gate rules\. Known here: capacity, default, llm_baseline"
    ):
        load_rules(CONF / "defaults.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("rules: [\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_rules(broken)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rules(tmp_path)
    # YAML would keep the last, and the gate would pass what the first one forbids.
    broken.write_text("rules:\n  - kind: completes\nrules:\n  - {kind: completes}\n")
    with pytest.raises(ConfigError, match=r"not YAML: rules is given twice in .*line 3"):
        load_rules(broken)


def test_conditions() -> None:
    assert Condition(at_least=2, at_most=4).holds(2)
    assert not Condition(at_least=2).holds(1.9)
    assert not Condition(at_least=0).holds(True)
    assert not Condition(at_least=0).holds(None)
    assert Condition(values=("cuda", "cpu")).holds("cpu")
    assert value_at(SHORT, "task.new_tokens") == 64
    assert value_at(SHORT, "task.name.first") is None
    assert all_but(SHORT, "task.new_tokens") == all_but(LONG, "task.new_tokens")
    assert all_but(SHORT, "device.kind") != all_but(LONG, "device.kind")
