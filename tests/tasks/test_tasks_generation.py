"""The timing of a sequence on a fake clock: what is in each interval and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.engines.transformers.generation import GreedyGenerator
from testing.clock import FakeClock

PREFILL_S = 0.5
STEP_S = 0.02


class FakeModel:
    """Takes time as a device does: work is queued, the host goes on."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.calls: list[tuple[tuple[int, ...], dict[str, Any]]] = []
        self.steps = 0

    def __call__(
        self, *, input_ids: torch.Tensor, past_key_values: list[int], **options: Any
    ) -> Any:
        self.calls.append((tuple(input_ids.shape), options))
        past_key_values.append(input_ids.shape[1])
        if input_ids.shape[1] > 1:
            self.clock.launch(PREFILL_S)
        else:
            self.steps += 1
            self.clock.launch(STEP_S * self.steps)  # every interval is another
        logits = torch.zeros(input_ids.shape[0], 1, 16)
        logits[:, -1, len(self.calls) % 16] = 1.0
        return SimpleNamespace(logits=logits)


def make(**options: Any) -> tuple[GreedyGenerator, FakeModel, FakeClock, list[list[int]]]:
    clock = FakeClock()
    model = FakeModel(clock)
    caches: list[list[int]] = []

    def new_cache() -> list[int]:
        caches.append([])
        return caches[-1]

    generator = GreedyGenerator(model, clock, new_cache, **options)
    return generator, model, clock, caches


def test_each_interval_is_its_own_and_the_prefill_is_none_of_them() -> None:
    generator, _, _, _ = make()
    timing, tokens = generator.sequence(torch.zeros(2, 7, dtype=torch.long), 5)
    assert timing.ttft_s == pytest.approx(PREFILL_S)
    assert timing.intervals_s == pytest.approx([STEP_S * i for i in (1, 2, 3, 4)])
    assert len(tokens) == 5
    assert all(token.shape == (2, 1) for token in tokens)


def test_nothing_carries_over_to_the_next_sequence() -> None:
    generator, _, _, caches = make()
    prompt = torch.zeros(1, 7, dtype=torch.long)
    for _ in range(3):
        timing, _ = generator.sequence(prompt, 4)
        assert len(timing.intervals_s) == 3
    assert caches == [[7, 1, 1, 1]] * 3


def test_one_token_has_no_interval() -> None:
    generator, model, _, _ = make()
    timing, tokens = generator.sequence(torch.zeros(1, 7, dtype=torch.long), 1)
    assert timing.intervals_s == ()
    assert len(tokens) == 1
    assert model.steps == 0


def test_decode_waits_for_the_device_twice_however_many_tokens() -> None:
    counts = []
    for new_tokens in (2, 20):
        generator, _, clock, _ = make()
        generator.sequence(torch.zeros(1, 7, dtype=torch.long), new_tokens)
        counts.append(clock.syncs)
    assert counts[0] == counts[1]


def test_what_happens_at_the_edges_of_a_phase_is_not_timed() -> None:
    generator, _, clock, _ = make()
    seen = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        seen.append(name)
        clock.advance(10)
        yield
        clock.advance(10)

    timing, _ = generator.sequence(torch.zeros(1, 7, dtype=torch.long), 3, phase)
    assert seen == ["prefill", "decode"]
    assert timing.ttft_s == pytest.approx(PREFILL_S)
    assert timing.intervals_s == pytest.approx([STEP_S, 2 * STEP_S])


def test_only_the_prefill_gets_its_options() -> None:
    generator, model, _, _ = make(prefill_options={"logits_to_keep": 1})
    generator.sequence(torch.zeros(1, 7, dtype=torch.long), 3)
    assert model.calls == [((1, 7), {"logits_to_keep": 1}), ((1, 1), {}), ((1, 1), {})]


def test_tokens_are_the_models_choice() -> None:
    generator, _, _, _ = make()
    _, tokens = generator.sequence(torch.zeros(1, 7, dtype=torch.long), 3)
    assert torch.cat(tokens, dim=-1).tolist() == [[1, 2, 3]]
