"""Samples of one repetition follow each other: intervals rest on repetitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.isolate.ledger import Ledger
from orchestrator.measure.metric import Samples
from orchestrator.measure.plain_json import from_json, to_json
from orchestrator.report.analyse.measured import samples_of
from orchestrator.statistics.judge import judge
from orchestrator.statistics.repetitions import ByRepetition, lengths_of, repetitions_in
from orchestrator.statistics.summary import summarise, summarise_attempts
from testing.seeds import drawing_seed

TOKENS, REPETITIONS = 128, 10


def series(
    rng: np.random.Generator, coefficient: float, repetitions: int, count: int
) -> list[ByRepetition]:
    """``count`` attempts of log-normal AR(1) tokens whose median is 1."""
    shape = (TOKENS, count * repetitions)
    steps = rng.normal(0.0, math.sqrt(1.0 - coefficient**2), shape)
    steps[0] = rng.normal(size=shape[1])
    for token in range(1, TOKENS):
        steps[token] += coefficient * steps[token - 1]
    values = np.exp(0.1 * steps.T).reshape(count, -1)
    return [ByRepetition(each.tolist(), (TOKENS,) * repetitions) for each in values]


def covered(attempts: list[list[ByRepetition]]) -> int:
    found = [summarise_attempts(each, resamples=2_000) for each in attempts]
    return sum((s.ci_low or 9.0) <= 1.0 <= (s.ci_high or 0.0) for s in found)


@pytest.mark.parametrize(
    ("coefficient", "repetitions"), [(0.5, 10), (0.9, 5), (0.9, 20), (0.98, 10)]
)
def test_intervals_of_tokens_cover_what_they_say(coefficient: float, repetitions: int) -> None:
    rng = np.random.default_rng([drawing_seed(), repetitions])
    cases = 300
    attempts = [[one] for one in series(rng, coefficient, repetitions, cases)]
    # Not significantly below 95 %: a chance of 1e-4 that a right interval falls under it.
    assert covered(attempts) >= 0.95 * cases - 3.7 * math.sqrt(0.95 * 0.05 * cases)
    # As independent tokens they would not: the test can fail.
    plain = [summarise(tuple(one), resamples=2_000) for (one,) in attempts[:100]]
    assert sum((s.ci_low or 9.0) <= 1.0 <= (s.ci_high or 0.0) for s in plain) < 90


def test_intervals_of_several_attempts_cover_too() -> None:
    rng = np.random.default_rng([drawing_seed(), 3])
    made = series(rng, 0.9, REPETITIONS, 600)
    attempts = [made[i : i + 3] for i in range(0, 600, 3)]
    assert covered(attempts) >= 0.95 * 200 - 3.7 * math.sqrt(0.95 * 0.05 * 200)


def test_the_estimate_and_the_percentiles_stay() -> None:
    (one,) = series(np.random.default_rng(1), 0.9, 2, 1)
    grouped, plain = summarise(one), summarise(tuple(one))
    assert (grouped.median, grouped.n, grouped.p95) == (plain.median, plain.n, plain.p95)
    assert grouped.p95 is not None
    assert grouped.ci_low is not None
    assert grouped.ci_high is not None
    assert plain.ci_low is not None
    assert plain.ci_high is not None
    assert grouped.ci_high - grouped.ci_low > 2 * (plain.ci_high - plain.ci_low)


def test_tokens_of_one_repetition_have_no_interval() -> None:
    one = summarise(ByRepetition((1.0, 1.1, 0.9, 1.0), (4,)))
    assert (one.median, one.ci_low) == (1.0, None)
    assert one.reason is not None
    assert one.reason.startswith("one repetition")
    single = ByRepetition((1.0, 1.1), (2,))
    found = judge([single], [ByRepetition((2.0, 2.1), (2,))], better="lower")
    assert (found.finding, found.ci_low) == ("inconclusive", None)
    assert found.reason == "one repetition: its uncertainty cannot be known"
    # Several attempts of one repetition each have the spread between them.
    assert summarise_attempts([single, ByRepetition((1.2, 1.3), (2,))]).ci_low is not None


def test_few_repetitions_decide_less_than_many_tokens_seem_to() -> None:
    """The same AR(1) tokens twice: as tokens they differ, as repetitions they may not."""
    rng = np.random.default_rng([drawing_seed(), 4])
    wrong = {"tokens": 0, "repetitions": 0}
    for new, base in zip(*[iter(series(rng, 0.98, 10, 120))] * 2, strict=True):
        wrong["tokens"] += judge([tuple(new)], [tuple(base)], better="lower").finding in (
            "regression",
            "improvement",
        )
        wrong["repetitions"] += judge([new], [base], better="lower").finding in (
            "regression",
            "improvement",
        )
    assert wrong["repetitions"] <= 6 < wrong["tokens"]


def test_a_series_knows_its_repetitions() -> None:
    one = ByRepetition((1.0, 2.0, 3.0), (2, 1))
    assert one == ByRepetition((1.0, 2.0, 3.0), (2, 1))
    assert one != ByRepetition((1.0, 2.0, 3.0), (1, 2))
    assert (lengths_of(one), repetitions_in(one)) == ((2, 1), 2)
    each = ByRepetition((1.0, 2.0), (1, 1))
    assert (lengths_of(each), repetitions_in(each)) == (None, 2)
    with pytest.raises(ValueError, match="repetitions of 3 samples, there are 2"):
        ByRepetition((1.0, 2.0), (3,))


def test_the_pipe_carries_which_repetition_a_token_is_of() -> None:
    ledger = Ledger()
    event = b'{"e":"samples","name":"itl_s","unit":"s","values":[%s],"role":"%s"%s}\n'
    ledger.feed(event % (b"9, 9", b"warmup", b',"together":true'))
    ledger.feed(event % (b"1, 2, 3", b"measured", b',"together":true'))
    ledger.feed(event % (b"4, 5", b"measured", b',"together":true'))
    ledger.feed(event % (b"6", b"measured", b""))
    metric = ledger.metrics["itl_s"]
    assert metric == Samples("itl_s", "s", (1, 2, 3, 4, 5, 6), (9, 9), lengths=(3, 2, 1))
    assert from_json(Samples, to_json(metric)) == metric
    report = AttemptReport("1", "a" * 64, Outcome.OK, metrics={"itl_s": metric})
    (samples,) = samples_of([report], "itl_s")
    assert lengths_of(samples) == (3, 2, 1)


def test_one_value_a_repetition_needs_no_lengths() -> None:
    ledger = Ledger()
    for value in (1.0, 2.0):
        line = f'{{"e":"samples","name":"t_s","unit":"s","values":[{value}],"role":"measured"}}\n'
        ledger.feed(line.encode())
    assert ledger.metrics["t_s"] == Samples("t_s", "s", (1.0, 2.0))
