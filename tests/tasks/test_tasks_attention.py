"""task=attention at small sizes: the kernel asked for runs, and keeps what it should."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from orchestrator.errors import ConfigError
from orchestrator.measure import Infeasible, Mismatch
from orchestrator.report.show.figures import exponent
from orchestrator.tasks.attention import kernels
from testing.checks import check_of

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
check = check_of("attention")
SMALL = {"batch_size": 2, "tokens": 64, "head_dim": 16}
HERE = ("naive", "sdpa_math", "sdpa_flash")


def attention(identity: Identity, quant: str = "fp32", **options: Any) -> dict[str, Any]:
    return identity(quant, task="attention", **{**SMALL, **options})


def draw(heads: int = 2, tokens: int = 33, width: int = 8) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, tokens, width, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("implementation", HERE)
def test_every_implementation_computes_attention(implementation: str, causal: bool) -> None:
    queries, keys, values = (tensor.double() for tensor in draw())
    expected = torch.zeros_like(queries)
    for at in range(33):
        last = at + 1 if causal else 33
        scores = (queries[:, :, at : at + 1] @ keys[:, :, :last].mT).squeeze(-2) / math.sqrt(8)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        expected[:, :, at] = (weights.unsqueeze(-2) @ values[:, :, :last]).squeeze(-2)
    if implementation == "naive":
        attend = kernels.naive(33, causal=causal, device=torch.device("cpu"))
    else:
        attend = kernels.sdpa(implementation, causal=causal)
    assert torch.allclose(attend(*draw()).double(), expected, atol=1e-5)


@pytest.mark.parametrize("quant", ["fp32", "bf16"])
@pytest.mark.parametrize("implementation", HERE)
def test_forward_and_backward_are_measured(
    identity: Identity, run: Run, implementation: str, quant: str
) -> None:
    events = run(attention(identity, quant, implementation=implementation))
    forward, backward = events.samples("forward_s"), events.samples("backward_s")
    assert len(forward) == len(backward) == 3
    assert min(*forward, *backward) > 0
    flops = events.fact("forward_flops")
    for i, both in enumerate(events.samples("attention_s")):
        assert both == pytest.approx(forward[i] + backward[i])
        assert events.samples("forward_flop_per_s")[i] == pytest.approx(flops / forward[i])
    expected = ["prepare", "engaged", "warmup", *["forward", "backward"] * 3, "prove", "kept"]
    assert events.phases() == expected
    if implementation != "naive":
        assert events.engaged("attention")["got"] == implementation


def test_the_kernel_is_told_by_what_ran() -> None:
    inputs = draw()
    for implementation in ("sdpa_math", "sdpa_flash"):
        assert kernels.ran(kernels.sdpa(implementation, causal=True), inputs) == implementation
    plain = kernels.naive(33, causal=True, device=torch.device("cpu"))
    assert kernels.ran(plain, inputs) == "naive"


def test_another_kernel_than_the_one_asked_for_is_a_mismatch(
    identity: Identity, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = kernels.sdpa("sdpa_math", causal=True)
    monkeypatch.setattr("orchestrator.tasks.attention.attention.sdpa", lambda name, causal: other)
    with pytest.raises(Mismatch, match="asked for attention sdpa_flash, got sdpa_math"):
        run(attention(identity, implementation="sdpa_flash"))


def test_another_result_than_attention_has_is_a_mismatch(
    identity: Identity, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kernels.naive(64, causal=False, device=torch.device("cpu"))
    monkeypatch.setattr(
        "orchestrator.tasks.attention.attention.naive", lambda tokens, causal, device: whole
    )
    asked = attention(identity, implementation="naive")
    with pytest.raises(Mismatch, match="asked for result exact attention's"):
        run(asked)
    assert run({**asked, "task": {**asked["task"], "causal": False}}).engaged("result")["ok"]


def test_only_the_naive_one_keeps_the_square(identity: Identity, run: Run) -> None:
    lengths = (128, 256, 512)
    kept = {
        implementation: [
            run(attention(identity, implementation=implementation, tokens=tokens)).value(
                "memory_before_backward_bytes"
            )
            for tokens in lengths
        ]
        for implementation in ("naive", "sdpa_flash")
    }
    square = [2 * tokens**2 * 4 for tokens in lengths]
    for naive, flash, scores, tokens in zip(
        kept["naive"], kept["sdpa_flash"], square, lengths, strict=True
    ):
        assert naive >= scores
        assert flash < 0.6 * scores
        row = 2 * tokens * 16 * 4
        assert 4 * row <= flash <= 4 * row + 2 * tokens * 16  # and the sums of the softmax
    assert exponent(lengths, kept["sdpa_flash"]) == pytest.approx(1.0, abs=0.02)
    assert exponent(lengths, kept["naive"]) > 1.6


def test_flops_count_the_pairs_that_the_mask_leaves(identity: Identity, run: Run) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        events = run(attention(identity, implementation="naive", causal=False))
    # Engaged has no pass for the naive one: warm-up, 3 samples, proof and kept pass go forward. The
    # proof computes one head of one batch itself.
    per_forward = 2 * 2 * 2 * 64 * 64 * 16
    assert events.fact("forward_flops") == per_forward
    exact = 2 * 2 * 64 * 64 * 16
    assert counter.get_total_flops() == 6 * per_forward + 4 * 2 * per_forward + exact
    causal = run(attention(identity, implementation="naive"))
    assert causal.fact("forward_flops") == per_forward * 65 / 128


@pytest.mark.parametrize(
    ("quant", "options", "reason"),
    [
        ("fp32", {"implementation": "sdpa_efficient"}, "CUDA devices only"),
        ("bf16", {"implementation": "sdpa_cudnn"}, "CUDA devices only"),
        ("nf4", {}, "no weights to be nf4"),
    ],
)
def test_what_the_device_cannot_do_is_infeasible(
    identity: Identity, quant: str, options: dict[str, Any], reason: str
) -> None:
    assert reason in str(check(attention(identity, quant, **options)))


def test_flash_on_cuda_needs_half_precision_and_compiled_a_compiler(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = attention(identity, implementation="sdpa_flash")
    assert check(asked) is None
    asked["device"]["kind"] = "cuda"
    assert "bfloat16 or float16" in str(check(asked))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in str(check(attention(identity, implementation="compiled")))


@pytest.mark.parametrize("implementation", ["sdpa_efficient", "sdpa_cudnn"])
def test_a_backend_that_torch_refuses_is_infeasible_while_running(
    identity: Identity, run: Run, implementation: str
) -> None:
    with pytest.raises(Infeasible, match=f"{implementation} cannot run here"):
        run(attention(identity, implementation=implementation))


def test_scores_beyond_the_device_are_infeasible(identity: Identity, run: Run) -> None:
    with pytest.raises(Infeasible, match=r"the scores alone need \d+\.\d GiB"):
        run(attention(identity, implementation="naive", tokens=4_000_000))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"implementation": "fast"}, "task.implementation"),
        ({"tokens": 0}, "task.tokens"),
        ({"head_dim": -1}, "task.head_dim"),
        ({"batch_size": 0}, "task.batch_size"),
        ({"heads": 0}, "task.heads"),
    ],
)
def test_what_has_no_sense_is_a_configuration_error(
    identity: Identity, options: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError, match=where):
        check(attention(identity, **options))


@pytest.mark.usefixtures("shared_compiler")
@pytest.mark.long
@pytest.mark.xdist_group("compiler")
def test_compiled_attention_is_one_graph(identity: Identity, run: Run) -> None:
    events = run(attention(identity, implementation="compiled"))
    assert events.value("compile_graphs") == 1
    assert events.value("compile_graph_breaks") == 0
    assert events.fact("compiled_while_measured") is False
    assert events.value("memory_before_backward_bytes") > 0
