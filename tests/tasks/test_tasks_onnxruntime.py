"""engine=onnxruntime in an environment of its own: built, proven and measured for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.engines.cache import cache_root
from orchestrator.engines.logit_proofs import prove_by_logits
from orchestrator.errors import Mismatch
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import Absent, HostClock, Recorder
from testing.checks import check_of
from testing.environments import environment
from testing.gguf import rewritten
from testing.trial import make_identity, run_attempt
from testing.written import ITEMS, answers_of, evaluated, words_task

ENVIRONMENT = "onnxruntime"

check = check_of("inference")


def identity(model: Path, quant: str = "int4wo", **options: Any) -> dict[str, Any]:
    asked = make_identity(
        quant,
        engine="onnxruntime",
        model={"source": "gguf", "path": str(model), "architecture": None},
        **{"prompt_tokens": 16, "new_tokens": 4, **options},
    )
    return {**asked, "environment": environment(ENVIRONMENT)}


@pytest.mark.xdist_group("onnxruntime")
@pytest.mark.parametrize("quant", [pytest.param("fp32", marks=pytest.mark.long), "int4wo"])
def test_a_tiny_model_is_measured_for_real(
    isolation: Isolation, reads_bytes: Path, quant: str
) -> None:
    text = {"quality_tokens": 32, "batch_size": 2}
    report = run_attempt(isolation, identity(reads_bytes, quant, **text))
    assert report.outcome is Outcome.OK, report.reason
    phases = [phase.name for phase in report.phases]
    assert phases[:4] == ["prepare", "convert", "load", "first_call"]
    assert report.facts["proofs"]["cache"] == "proven"
    assert report.facts["proofs"]["causal"] == "proven"
    assert len(report.facts["output_digests"]) == 1
    ((format_proof),) = [e for e in report.engaged if e.what == "format"]
    assert ("[4, 32]" in format_proof.got) == (quant == "int4wo")
    metrics = report.metrics
    assert {"ttft_s", "tpot_s", "itl_s", "load_s", "weights_bytes"} <= metrics.keys()
    kl = value(report, "kl_to_reference")
    # Single precision on both sides: what is left is the order of sums.
    assert kl < 1e-6 if quant == "fp32" else 1e-6 < kl < 0.1
    assert value(report, "perplexity") == pytest.approx(
        value(report, "reference_perplexity"), rel=1e-4 if quant == "fp32" else 0.2
    )


@pytest.mark.xdist_group("onnxruntime")
def test_a_depth_is_appended_before_what_is_timed(isolation: Isolation, reads_bytes: Path) -> None:
    deep, whole = (
        run_attempt(isolation, identity(reads_bytes, "fp32", depth=depth, prompt_tokens=32 - depth))
        for depth in (20, 0)
    )
    assert deep.outcome is Outcome.OK, deep.reason
    assert deep.facts["proofs"]["cache"] == "proven"
    ((held),) = [e for e in deep.engaged if e.what == "tokens in the cache before the prompt"]
    assert held.got == "20"
    # The same ids, computed at once.
    for fact in ("prompt", "output_digests"):
        assert deep.facts[fact] == whole.facts[fact]


@pytest.mark.xdist_group("onnxruntime")
def test_a_tokenizer_that_splits_a_text_otherwise_reads_none(
    isolation: Isolation, reads_bytes: Path
) -> None:
    asked = identity(reads_bytes, "fp32", quality_tokens=32)
    run_attempt(isolation, asked)
    kept = {made: made.read_text() for made in cache_root().glob("onnx/*/about.json")}
    try:
        for made, text in kept.items():
            about = json.loads(text)
            made.write_text(json.dumps({**about, "probe": [about["probe"][0], [1, 2]]}))
        perplexity = run_attempt(isolation, asked).metrics["perplexity"]
    finally:
        for made, text in kept.items():
            made.write_text(text)
    assert isinstance(perplexity, Absent)
    assert "splits a text otherwise" in perplexity.reason


@pytest.mark.xdist_group("onnxruntime")
def test_a_tokenizer_that_it_cannot_read_costs_the_text_alone(
    isolation: Isolation, reads_bytes: Path, tmp_path: Path
) -> None:
    # Its regular expressions know no such class of characters as llama.cpp's default splits by.
    file = rewritten(reads_bytes, tmp_path / "d.gguf", {"tokenizer.ggml.pre": "default"})
    report = run_attempt(isolation, identity(file, "fp32", quality_tokens=32))
    assert report.outcome is Outcome.OK, report.reason
    perplexity = report.metrics["perplexity"]
    assert isinstance(perplexity, Absent)
    assert "ONNX Runtime cannot read the model's tokenizer" in perplexity.reason


@pytest.mark.long
@pytest.mark.xdist_group("onnxruntime")
def test_text_is_generated_for_an_evaluation(
    isolation: Isolation, writes_ascii: Path, tmp_path: Path
) -> None:
    task = words_task(tmp_path)
    ours, plain = (
        answers_of(evaluated(isolation, asked, writes_ascii, task))
        for asked in (identity(writes_ascii, "fp32", depth=8), make_identity(task="quality"))
    )
    # Where the two likeliest tokens are next to each other, its sums may choose the other one.
    assert sum(one == two for one, two in zip(ours, plain, strict=True)) > 0.9 * ITEMS
    assert len(set(ours)) > 4


def value(report: AttemptReport, name: str) -> float:
    found: Any = report.metrics[name]
    return float(found.value)


def test_what_it_cannot_do_is_infeasible(tiny_gguf: Path) -> None:
    asked = identity(tiny_gguf)
    assert check(asked) is None
    assert "has no nf4; it has fp32, int4wo" in str(check(identity(tiny_gguf, "nf4")))
    assert "environment=onnxruntime" in str(check({**asked, "environment": None}))
    assert "batch_size=1" in str(check(identity(tiny_gguf, depth=8, batch_size=2)))
    random = {**asked, "model": make_identity()["model"]}
    assert "random weights have none" in str(check(random))


def speaks(leak: float = 0.0, *, forgets: bool = False) -> Callable[[list[list[int]]], Any]:
    """A model whose logits depend on all tokens before; or not as they should."""
    table = np.random.default_rng(0).normal(size=(50, 80)).astype(np.float32)

    def logits_of(pieces: list[list[int]]) -> list[np.ndarray]:
        seen: list[int] = []
        found = []
        for piece in pieces:
            before = [] if forgets else list(seen)
            rows = [
                table[[*before, *piece[: n + 1]]].sum(0) + leak * table[piece[-1]]
                for n in range(len(piece))
            ]
            found.append(np.array(rows))
            seen += piece
        return found

    return logits_of


def proven(logits_of: Any) -> dict[str, str]:
    events: list[Any] = []
    recorder = Recorder(events.append, HostClock(), Path())
    prove_by_logits(logits_of, list(range(20)), 2e-5, recorder)
    (states,) = [e["value"] for e in events if e["e"] == "fact"]
    return dict(states)


def test_proofs_find_a_leak_and_a_cache_that_forgets() -> None:
    assert set(proven(speaks()).values()) == {"proven"}
    with pytest.raises(Mismatch, match="causal"):
        proven(speaks(leak=0.1))
    with pytest.raises(Mismatch, match="cache"):
        proven(speaks(forgets=True))
