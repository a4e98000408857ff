"""Energy per token, from what the task measured and what telemetry saw."""

from __future__ import annotations

import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.measure import Absent, Metric, Samples, Value
from orchestrator.telemetry import derived


def report(energy: Metric | None, *, batch: int = 4, new_tokens: int = 5) -> AttemptReport:
    pace = 0.02
    rates = (batch / pace, batch / pace, batch / pace)
    metrics: dict[str, Metric] = {
        "itl_s": Samples("itl_s", "s", (pace,) * (3 * (new_tokens - 1)), (pace,) * 99),
        "tpot_s": Samples("tpot_s", "s", (pace,) * 3, stop_reason="ci"),
        "decode_tokens_per_s": Samples("decode_tokens_per_s", "tokens/s", rates),
    }
    seen = {} if energy is None else {"decode.energy_j": energy}
    return AttemptReport("a", "h", Outcome.OK, metrics=metrics, telemetry=seen)


def test_energy_is_divided_by_the_tokens_of_the_whole_batch_decoded() -> None:
    found = derived(report(Value("decode.energy_j", "J", 96.0)))
    # 3 repetitions, 4 rows, 5 new tokens of which the first belongs to the prefill: 48 tokens.
    assert found["joules_per_token"] == Value("joules_per_token", "J/token", pytest.approx(2.0))


def test_no_energy_is_no_figure_with_the_same_reason() -> None:
    found = derived(report(Absent("decode.energy_j", "J", "the attempt owns no GPU")))
    assert found["joules_per_token"] == Absent(
        "joules_per_token", "J/token", "the attempt owns no GPU"
    )
    assert isinstance(derived(report(None))["joules_per_token"], Absent)


def test_task_without_tokens_has_no_such_figure() -> None:
    assert derived(AttemptReport("a", "h", Outcome.OK)) == {}
