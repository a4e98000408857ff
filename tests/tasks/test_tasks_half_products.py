"""Half precision multiplied by way of float32: the same everywhere, and only while asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from orchestrator.measure import Infeasible
from orchestrator.measure.registry import find_task
from orchestrator.tasks.half_products import products_in, through_float32

HALF = (torch.bfloat16, torch.float16)


def _random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def _through(work: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    return work(*(t.float() for t in tensors)).to(tensors[0].dtype)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "work",
    [
        lambda a, b: a @ b,
        lambda a, b: a.t() @ b.t(),
        lambda a, b: torch.mm(a, b, out=torch.empty(24, 24, dtype=a.dtype)),
        lambda a, b: torch.addmm(b[:, :1].t().expand(24, 24), a, b, beta=0.5, alpha=2.0),
        lambda a, b: torch.bmm(a.expand(3, 24, 24), b.expand(3, 24, 24)),
        lambda a, b: torch.baddbmm(a.expand(3, 24, 24), a.expand(3, 24, 24), b.expand(3, 24, 24)),
        lambda a, b: attend(a.view(1, 2, 12, 24), b.view(1, 2, 12, 24), a.view(1, 2, 12, 24)),
    ],
)
def test_a_product_is_float32s_rounded_once(work: Any, dtype: torch.dtype) -> None:
    a, b = _random(24, 24, dtype=dtype), _random(24, 24, dtype=dtype) + 1
    expected = _through(work, a, b)
    with through_float32() as converted:
        found = work(a, b)
    assert converted.products == 1
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def test_gradients_are_float32s_rounded_once() -> None:
    x, w = _random(2, 8, 16, dtype=torch.bfloat16), _random(4, 16, dtype=torch.bfloat16)
    above = _random(2, 8, 4, dtype=torch.bfloat16)
    x.requires_grad_()
    w.requires_grad_()
    with through_float32() as converted:
        torch.nn.functional.linear(x, w).backward(above)
    assert converted.products == 3
    rows, over = x.detach().view(16, 16), above.view(16, 4)
    assert x.grad is not None
    assert w.grad is not None
    assert torch.equal(x.grad.view(16, 16), _through(torch.mm, over, w.detach()))
    assert torch.equal(w.grad, _through(torch.mm, over.t(), rows))


def test_fused_attention_gives_gradients_no_worse_than_torchs_own() -> None:
    inputs = [_random(1, 2, 6 + n, 8, dtype=torch.bfloat16)[:, :, :6] for n in range(4)]

    def gradients(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        *leaves, above = (t.to(dtype) for t in inputs)
        for leaf in leaves:
            leaf.requires_grad_()
        return torch.autograd.grad(attend(*leaves, is_causal=True), leaves, above)

    exact, native = gradients(torch.float32), gradients(torch.bfloat16)
    with through_float32() as converted:
        found = gradients(torch.bfloat16)
    assert converted.products == 2
    for one, other, reference in zip(found, native, exact, strict=True):
        assert one.dtype == torch.bfloat16
        errors = [float((g.float() - reference).abs().max()) for g in (one, other)]
        assert errors[0] <= 1.25 * errors[1]


def test_autocast_goes_the_same_way_and_float32_its_own() -> None:
    a, b = _random(32, 32, dtype=torch.float32), _random(32, 32, dtype=torch.float32)
    expected = _through(torch.mm, a.bfloat16(), b.bfloat16())
    with through_float32() as converted:
        assert torch.equal(a @ b, torch.mm(a, b))
        assert not converted.products
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(a @ b, expected)
    assert converted.products == 1


def test_torch_multiplies_as_before_once_it_is_over() -> None:
    a = _random(24, 24, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="over"), through_float32() as converted:
        raise RuntimeError("over")
    torch.mm(a, a)
    assert not converted.products


def test_an_empty_result_is_given_its_shape_as_torch_does() -> None:
    a = _random(4, 4, dtype=torch.bfloat16)
    out = torch.empty(0, dtype=torch.bfloat16)
    with through_float32():
        assert torch.mm(a, a, out=out) is out
    assert torch.equal(out, _through(torch.mm, a, a))


def test_a_torch_that_cannot_is_said_to_be_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.library, "get_kernel")
    with pytest.raises(Infeasible, match=r"task\.products"), through_float32():
        pass


def test_wrong_shapes_are_still_torchs_own_error() -> None:
    a = _random(3, 4, dtype=torch.bfloat16)
    with through_float32(), pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.mm(a, a)


@pytest.mark.parametrize("emulates", [True, False])
def test_auto_converts_only_where_the_cpu_would_do_it_in_loops(
    emulates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.tasks.half_products.emulates_half_precision", lambda: emulates
    )
    there = "float32" if emulates else "native"
    assert products_in("auto", "bfloat16", "cpu") == there
    assert products_in("auto", "float16", "cpu") == there
    assert products_in("auto", "float32", "cpu") == "native"
    assert products_in("auto", "bfloat16", "cuda") == "native"
    assert products_in("float32", "bfloat16", "cpu") == "float32"
    assert products_in("float32", "float32", "cpu") == "native"
    assert products_in("native", "bfloat16", "cpu") == "native"


@pytest.mark.parametrize(
    ("quant", "options", "went"),
    [
        ("bf16", {"products": "float32"}, "float32"),
        ("bf16", {"products": "native"}, "native"),
        ("fp32", {"products": "float32"}, "native"),
        ("fp32", {"products": "float32", "autocast": "bfloat16"}, "float32"),
    ],
)
def test_a_training_step_says_what_multiplied_it(
    identity: Any, run: Any, quant: str, options: dict[str, str], went: str
) -> None:
    asked = identity(quant, task="training", batch_size=2, context_tokens=16, **options)
    events = run(asked)
    assert events.engaged("products")["got"] == went
    said = [e["value"] for e in events if e["e"] == "fact" and e["key"] == "products"]
    assert said == (["products in float32"] if went == "float32" else [])
    assert events.value("last_loss") < events.value("first_loss")


def test_the_loss_is_that_of_native_products(identity: Any, run: Any) -> None:
    losses = [
        run(
            identity("bf16", task="training", batch_size=2, context_tokens=16, products=products)
        ).value("last_loss")
        for products in ("native", "float32")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_prediction_is_of_what_is_multiplied_in(identity: Any) -> None:
    expect = find_task("training").expect
    assert expect is not None
    wide, native = (
        expect(identity("bf16", task="training", products=products), None)
        for products in ("float32", "native")
    )
    assert wide is not None
    assert native is not None
    assert {work.dtype for work in wide.work.values()} == {"float32"}
    assert {work.dtype for work in native.work.values()} == {"bfloat16"}
    for name, steps in wide.made_steps().items():
        own = native.made_steps()[name]
        products = [o for o in steps.eager if o.flops]
        assert {o.dtype for o in products} == ({"float32"} if products else set())
        assert sum(o.flops * o.count for o in products) == sum(o.flops * o.count for o in own.eager)
        # What is not multiplied is as it was, and each product has passes that convert for it.
        kept = [o for o in own.eager if not o.flops]
        passes = [o for o in steps.eager if not o.flops and o not in kept]
        assert [o for o in steps.eager if o in kept] == kept
        assert [o.count for o in passes] == [o.count for o in products]
        assert all(o.bytes > 0 and o.dtype == "bfloat16" for o in passes)
    assert wide.memory_bytes == native.memory_bytes
