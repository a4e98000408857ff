"""Weight-only integers on engine=transformers: planned here, measured in environment=torchao."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.engines.registry import expect
from orchestrator.isolate.isolation import Isolation
from testing.checks import check_of
from testing.environments import environment
from testing.trial import TINY, make_identity, run_attempt

ENVIRONMENT = "torchao"

check = check_of("inference")
HAS_IT = {"packages": {"torchao": "0.18.0"}}


def asked(quant: str, group: int | None, **options: Any) -> dict[str, Any]:
    made = make_identity(quant, **{"prompt_tokens": 16, "new_tokens": 4, **options})
    return {**made, "quant": {**made["quant"], "group_size": group}, "environment": HAS_IT}


def value(report: AttemptReport, name: str) -> float:
    found: Any = report.metrics[name]
    return float(found.value)


@pytest.mark.long
@pytest.mark.xdist_group("torchao")
def test_it_is_measured_and_is_what_it_says(isolation: Isolation, reads_bytes: Path) -> None:
    files: dict[str, Any] = {"source": "gguf", "path": str(reads_bytes), "architecture": None}
    there = environment(ENVIRONMENT)
    for quant, group, kind in (
        ("int8wo", None, "int8wo by row x"),
        ("int8wo", 64, "int8wo in groups of 64 x"),
        ("int4wo", 32, "int4wo in groups of 32 x"),
    ):
        for model in (None, files):
            trial = asked(quant, group, model=model, quality_tokens=32 if model else 0)
            report = run_attempt(isolation, {**trial, "environment": there})
            assert report.outcome is Outcome.OK, report.reason
            (weights,) = [each.got for each in report.engaged if each.what == "weights"]
            assert kind in weights
            assert report.facts["proofs"]["cache"] == "proven"
            assert report.facts["proofs"]["causal"] == "proven"
            if model is None:
                expected = expect(trial, None)
                assert expected is not None
                assert value(report, "weights_bytes") == expected.sizes_bytes["weights_bytes"]
            else:
                assert 0 < value(report, "kl_to_reference") < 0.1


@pytest.mark.parametrize(
    ("quant", "group", "reason"),
    [
        ("int8wo", 128, "the rows of 64, 128 values"),
        ("int4wo", 128, "those that do: 32, 64"),
        ("int4wo", 16, "those that do: 32, 64"),
        ("int8wo", 96, "those that do: 32, 64, and null for a scale to each row"),
    ],
)
def test_a_group_that_does_not_divide_the_rows_is_infeasible(
    quant: str, group: int, reason: str
) -> None:
    assert reason in str(check(asked(quant, group)))
    assert check(asked(quant, 64)) is None


def test_what_it_cannot_do_is_infeasible() -> None:
    plain = asked("int8wo", None)
    assert check(plain) is None
    assert "environment=torchao" in str(check({**plain, "environment": {"packages": {}}}))
    assert "device=cpu" in str(check(asked("int8wo", None, device="cuda")))
    stacked = {**TINY, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    found = check(asked("int8wo", None, model={"architecture": stacked}))
    assert "which torchao leaves as it is" in str(found)
