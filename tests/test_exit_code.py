"""The exit code of a run: which results count, and that a real run ends with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.attempt import Outcome
from orchestrator.commands.exit_code import exit_code
from testing.commands import orchestrator
from testing.near import near

LIMITS = {Outcome.INFEASIBLE, Outcome.OOM_DEVICE, Outcome.OOM_HOST}


@pytest.mark.parametrize("outcome", Outcome)
def test_each_outcome_beside_one_that_is_ok(outcome: Outcome) -> None:
    ends_well = outcome is Outcome.OK or outcome in LIMITS
    assert exit_code(["ok", outcome.value]) == (0 if ends_well else 1)
    assert exit_code(["ok", outcome.value], strict=True) == (0 if outcome is Outcome.OK else 1)


@pytest.mark.parametrize("results", [[], ["infeasible"], ["oom_host", "oom_device"], ["ok", None]])
def test_nothing_ok_or_nothing_at_all_is_no_success(results: list[str | None]) -> None:
    assert exit_code(results) == 1


def test_a_run_ends_with_it_again_and_again(tmp_path: Path) -> None:
    """A predicted limit (the model reads 2,048 tokens) next to a cell that computes."""
    words = ("task=estimate", "model=known/llama_7b", "task.hardware=a100", "device=cpu")
    prompts = "task.prompt_tokens=512,4096"
    with near():
        for asked, code in (
            ((prompts,), 0),
            ((prompts, "--strict"), 1),
            (("task.prompt_tokens=4096",), 1),
        ):
            done = orchestrator(tmp_path, *words, *asked)
            assert done.code == code, done.err
