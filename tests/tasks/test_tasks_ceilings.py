"""Every operation really made, at sizes that take milliseconds, and timed on a fake clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.host.memory import usable_bytes
from orchestrator.measure import Recorder
from orchestrator.model import (
    EAGER,
    CacheFormat,
    Measured,
    WeightFormat,
    decode,
    prefill,
    read_architecture,
    step_operations,
)
from orchestrator.tasks.ceilings import ceilings
from orchestrator.tasks.ceilings import layers as ceiling_layers
from orchestrator.tasks.ceilings import timed_operations as ceiling_operations
from orchestrator.tasks.ceilings.timed_operations import SizeScale
from testing.clock import FakeClock

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


DTYPES = ("float32", "bfloat16")
SMALL = SizeScale(
    widths=(16, 32, 64),
    rows=(1, 8, 16),
    spans=(4, 16),
    most=1 << 16,
    near_bytes=1 << 14,
    far_bytes=1 << 16,
    kept_bytes=1 << 16,
    triad_bytes=(3 << 12,),
    reading_bytes=(1 << 14, 1 << 16),
)


class Ticking(FakeClock):
    """A clock that moves by a microsecond whenever it is read: all that is timed takes as long."""

    def now_ns(self) -> int:
        self.advance(1e-6)
        return super().now_ns()


class _SlowMemory(ceiling_operations.Operations):
    """Bandwidth is measured where nothing is quick enough for any other point."""

    def triad(self, size: int) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ceiling_operations, "_LONGEST_S", 0.0)
            return super().triad(size)

    def reading(self, size: int) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ceiling_operations, "_LONGEST_S", 0.0)
            return super().reading(size)


def take_a_millisecond(patch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """Let the layers of the reference model do so, ahead and back: more than their products."""
    from transformers import LlamaModel

    plain = LlamaModel.forward

    def forward(*inputs: Any, **named: Any) -> Any:
        clock.advance(1e-3)
        found = plain(*inputs, **named)
        if found.last_hidden_state.requires_grad:
            found.last_hidden_state.register_hook(lambda _: clock.advance(1e-3))
        return found

    patch.setattr(LlamaModel, "forward", forward)


def test_every_ceiling_is_measured_and_the_arithmetic_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "_MOST_ROUNDS", 3)
    monkeypatch.setattr(ceilings, "CPU", SMALL)
    monkeypatch.setattr(ceiling_layers, "CPU", ceiling_layers.Shape(32, 64, 2, 2))
    monkeypatch.setattr(ceiling_layers, "PREFILLS", ((1, 4), (1, 16)))
    monkeypatch.setattr(ceiling_layers, "STEPS", ((2, 4), (2, 8)))
    monkeypatch.setattr(ceiling_operations, "_BLOCK_S", 1e-6)
    # Slow memory is no reason to have no bandwidth.
    monkeypatch.setattr(ceilings, "Operations", _SlowMemory)
    monkeypatch.setattr(ceiling_operations, "_TENSORS", (1 << 4, 1 << 10))
    monkeypatch.setattr(ceiling_operations, "_LOGITS", ((4, 16), (8, 64)))
    events: list[dict[str, Any]] = []
    kinds = [f"{kind}.{dtype}" for kind in ("inference", "training") for dtype in DTYPES]
    asked = "+".join([*kinds, "inference.float16", "int8"])
    identity = {"task": {"operations": asked}, "device": {"kind": "cpu", "threads": 1}}
    clock = Ticking()
    take_a_millisecond(monkeypatch, clock)
    ceilings.run(identity, Recorder(events.append, clock, tmp_path))
    fact = next(event["value"] for event in events if event["e"] == "fact")
    measured = Measured.from_json(fact)
    assert measured.flops_per_s("float32") > 1e6
    assert measured.bytes_per_s(1, "elementwise") > 1e6
    assert 1e-6 < measured.launch_s < 1e-4
    assert measured.spread == 1
    assert measured.memory_bytes == usable_bytes()
    values = {event["name"]: event["value"] for event in events if event["e"] == "value"}
    assert values["gemm_flop_per_s.float32"] == measured.peak("float32")
    assert values["triad_bytes_per_s"] == measured.bytes_per_s(1, "elementwise")
    # Nothing that a model does is left to be bounded: each operation was timed.
    llama = read_architecture(LLAMA)
    for dtype in (*DTYPES, "float16"):
        weights, cache = WeightFormat("none", dtype), CacheFormat(dtype)
        made = [
            *prefill(llama, 1, 8, weights, cache, EAGER),
            *decode(llama, 1, 8, weights, cache, EAGER),
        ]
        if dtype in DTYPES:
            step = step_operations(llama, 2, 8, parameter_dtype=dtype, execution=EAGER)
            made += [*step.forward, *step.backward, *step.optimizer]
        for operation in made:
            assert measured.timed_s(operation) is not None, operation


@pytest.mark.parametrize("operations", ["int8", "inference.float32"])
def test_what_a_launch_costs_is_absent_where_no_layer_tells_it(
    operations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "CPU", SMALL)
    # No slower than one of its products, as where the clock was disturbed.
    monkeypatch.setattr(ceiling_layers, "CPU", ceiling_layers.Shape(32, 64, 2, 2))
    monkeypatch.setattr(ceiling_operations, "_BLOCK_S", 1e-6)
    events: list[dict[str, Any]] = []
    identity = {"task": {"operations": operations}, "device": {"kind": "cpu", "threads": 1}}
    ceilings.run(identity, Recorder(events.append, Ticking(), tmp_path))
    (found,) = [event for event in events if event.get("name") == "launch_s"]
    assert found["e"] == "absent"
    (fact,) = [event["value"] for event in events if event["e"] == "fact"]
    assert not [name for name in fact["timings"] if name.startswith("passes")]
    assert Measured.from_json(fact).launch_s == 0


def test_what_takes_too_long_is_left_out() -> None:
    clock = FakeClock()
    timer = ceiling_operations.Timer(clock)
    longest_s = ceiling_operations._LONGEST_S
    assert timer.seconds(lambda: clock.advance(1.01 * longest_s)) is None
    assert timer.seconds(lambda: clock.advance(longest_s)) == pytest.approx(longest_s)
    # The first call finds memory and code as well.
    spent_s = iter([9 * longest_s])
    assert timer.seconds(lambda: clock.advance(next(spent_s, 0.001))) == pytest.approx(0.001)
    spent_s = iter([11 * longest_s])
    assert timer.seconds(lambda: clock.advance(next(spent_s, 0.001))) is None


def test_what_is_kept_is_timed_ahead_and_back() -> None:
    alive: list[int] = []
    clock = FakeClock()

    def ahead(index: int) -> int:
        clock.advance(0.002)
        alive.append(index)
        return index

    def back(index: int, result: int) -> None:
        assert index == result
        clock.advance(0.004)

    timer = ceiling_operations.Timer(clock)
    assert timer.kept(ahead, back, 3) == pytest.approx((0.002, 0.004))
    # Once to see how long it takes, then in chains of three.
    assert len(alive) % 3 == 1
    assert timer.kept(ahead, back, 3, longest_s=0.005) is None


def test_what_would_take_long_in_all_is_made_less_often() -> None:
    clock = FakeClock()
    made: list[int] = []

    def ahead(index: int) -> None:
        clock.advance(ceiling_operations._MOST_KEPT_S / 2.5)
        made.append(index)

    assert ceiling_operations.Timer(clock).kept(ahead, lambda *_: None, 40) is not None
    assert max(made) == 1


def test_the_median_round_counts_and_a_disturbed_one_does_not() -> None:
    keys = [("triad", float(size), 1.0) for size in range(8)]
    quiet, disturbed = dict.fromkeys(keys, 1.0), dict.fromkeys(keys, 10.0)
    typical, spread = ceilings.combine([quiet, disturbed, quiet])
    assert typical == quiet
    assert spread == 1
    # Disturbed most of the time: known to be no steady figure.
    typical, spread = ceilings.combine([disturbed, quiet, disturbed])
    assert typical == disturbed
    assert spread == 10


def test_a_pass_that_would_take_too_long_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the one before it: an emulated dtype takes seconds for each try."""
    clock, tried = FakeClock(), []
    shape = ceiling_layers.Shape(32, 64, 2, 2)
    timer = ceiling_operations.Timer(clock)
    reference = ceiling_layers.ReferenceLayers(
        torch.device("cpu"), shape, "float32", timer, trained=False
    )

    def run(batch: int, tokens: int) -> None:
        tried.append(tokens)
        clock.advance(0.01 * tokens)

    monkeypatch.setattr(reference, "_run", run)
    monkeypatch.setattr(reference, "_decode", lambda _: lambda: clock.advance(1.0))
    prefills = [point for point in reference.points() if point[0].startswith("layers.prefill")]
    assert prefills == [("layers.prefill.float32", 1, 16, pytest.approx(0.16))]
    assert set(tried) == {16}


def test_a_token_is_decoded_after_as_many_as_the_arithmetic_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no prefill is made for them."""
    shape = ceiling_layers.Shape(32, 64, 2, 2)
    timer = ceiling_operations.Timer(FakeClock())
    reference = ceiling_layers.ReferenceLayers(
        torch.device("cpu"), shape, "bfloat16", timer, trained=False
    )
    seen: list[tuple[int, ...]] = []
    attention = reference._model.layers[1].self_attn

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        seen.append((*layer.keys.shape, *layer.values.shape))

    attention.register_forward_hook(note, with_kwargs=True)
    monkeypatch.delattr(ceiling_layers.ReferenceLayers, "_run")
    with torch.inference_mode():
        step = reference._decode(4)
        step()
        step()
    past = ceiling_layers.PAST
    assert seen == [(4, 2, past + more, 16) * 2 for more in (1, 2)]
