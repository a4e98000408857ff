"""task=numerics: the four sums, dtypes under autocast, errors against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import ConfigError
from testing.checks import check_of

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
check = check_of("numerics")


def numerics(identity: Identity, dtype: str = "bfloat16", **options: Any) -> dict[str, Any]:
    asked = identity("fp32", task="numerics", **{"size": 64, **options})
    asked["quant"]["dtype"] = dtype
    return asked


def test_sums_are_those_of_correctly_rounded_arithmetic(identity: Identity, run: Run) -> None:
    events = run(numerics(identity))
    for name, accumulator, term in (
        ("float32", np.float32, np.float32),
        ("float16", np.float16, np.float16),
        ("float32_of_float16", np.float32, np.float16),
    ):
        total = accumulator(0)
        for _ in range(1000):
            total = accumulator(total + accumulator(term(0.01)))
        assert events.value(f"sum.{name}") == float(total)
    # bfloat16 has 8 bits: at 4, half a step is 0.0156 and 0.01 no longer counts.
    assert events.value("sum.bfloat16") == 4.0
    assert events.value("sum_relative_error.bfloat16") == pytest.approx(0.6)
    errors = [
        events.value(f"sum_relative_error.{name}")
        for name in ("float32", "float32_of_float16", "float16", "bfloat16")
    ]
    assert errors == sorted(errors)
    assert events.value("sum.float32_of_float16") == pytest.approx(10.0, rel=5e-4)


def test_autocast_keeps_parameters_and_gradients_wide(identity: Identity, run: Run) -> None:
    events = run(numerics(identity))
    found = dict(events.fact("autocast_dtypes"))
    # A norm is widened on CUDA; on the CPU it takes what comes.
    assert found.pop("layer_norm") in ("float32", "bfloat16")
    assert found == {
        "parameters": "float32",
        "product": "bfloat16",
        "logits": "bfloat16",
        "loss": "float32",
        "gradients": "float32",
    }
    assert events.engaged("autocast")["got"] == "bfloat16"
    assert "no autocast" in run(numerics(identity, "float32")).fact("autocast_dtypes")["absent"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_errors_are_of_the_order_of_the_formats_step(
    identity: Identity, run: Run, dtype: str
) -> None:
    events = run(numerics(identity, dtype))
    step = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}[dtype]
    assert events.value("epsilon") == step
    for name in ("matmul", "softmax", "softmax_by_hand"):
        error = events.value(f"{name}_relative_error")
        assert step / 100 < error < 4 * step
        assert events.value(f"{name}_max_absolute_error") > 0
        assert events.engaged(f"{name} dtype")["got"] == dtype


def test_rounding_every_step_of_softmax_is_worse(identity: Identity, run: Run) -> None:
    events = run(numerics(identity, size=512))
    assert events.value("softmax_by_hand_relative_error") > 1.2 * events.value(
        "softmax_relative_error"
    )


def test_inputs_that_overflow_have_no_error_and_say_so(identity: Identity, run: Run) -> None:
    events = run(numerics(identity, "float16", scale=1e6, additions=1))
    for name in ("softmax", "softmax_by_hand"):
        for error in ("max_absolute_error", "relative_error"):
            assert "overflows float16" in events.absent(f"{name}_{error}")
    assert events.value("matmul_relative_error") > 0


def test_the_same_figures_come_again(identity: Identity, run: Run) -> None:
    first, second = (run(numerics(identity)) for _ in range(2))
    kept = [[e for e in events if e["e"] == "value"] for events in (first, second)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 8 + 6 + 2


def test_quantized_weights_have_no_number_format_of_their_own(identity: Identity) -> None:
    assert "not of nf4" in str(check(identity("nf4", task="numerics")))
    assert check(numerics(identity)) is None


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"size": 0}, "task.size"),
        ({"additions": -1}, "task.additions"),
        ({"scale": -1.0}, "task.scale"),
    ],
)
def test_what_has_no_sense_is_a_configuration_error(
    identity: Identity, options: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError, match=where):
        check(numerics(identity, **options))
