"""Quality: identities that must hold, and the reference kept without loss that matters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.engines import transformers as loading
from orchestrator.engines.transformers import tokens
from orchestrator.engines.transformers.reference import Reference, reference_for
from orchestrator.measure import HostClock, InputError, Recorder
from orchestrator.tasks import quality

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]


def test_the_reference_itself_diverges_by_nothing(identity: Identity, run: Run) -> None:
    asked = identity("fp32", task="quality", tokens=100, window=32)
    for _ in range(2):  # with and without a stored reference
        events = run(asked)
        assert events.value("kl_to_reference") == 0.0
        assert events.value("top1_agreement") == 1.0
        assert events.value("reference_perplexity") == events.value("perplexity")


def test_perplexity_is_the_mean_cross_entropys_exponential(
    identity: Identity, run: Run, recorder: Any
) -> None:
    asked = identity("fp32", task="quality", tokens=100, window=32)
    events = run(asked)
    measured = events.value("perplexity")
    prepared = loading.prepare(asked, recorder[0])
    model = loading.load_unmeasured(prepared, asked["quant"], asked["device"], asked["seed"])
    ids = tokens.prompt(prepared, asked["seed"], 1, 101)[0]
    losses = []
    for start in range(0, 100, 32):
        window = ids[start : min(start + 32, 100)]
        target = ids[start + 1 : min(start + 32, 100) + 1]
        logits = model(input_ids=window[None]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
    assert torch.cat(losses).numel() == 100
    assert measured == pytest.approx(math.exp(float(torch.cat(losses).mean())), rel=1e-5)


def test_divergence_is_that_of_the_two_models(identity: Identity, run: Run, recorder: Any) -> None:
    asked = identity("nf4", task="quality", tokens=64, window=64)
    measured = run(asked).value("kl_to_reference")
    prepared = loading.prepare(asked, recorder[0])
    ids = tokens.prompt(prepared, asked["seed"], 1, 65)[:, :64]
    logs = []
    for quant in (identity("fp32")["quant"], asked["quant"]):
        model = loading.load_unmeasured(prepared, quant, asked["device"], asked["seed"])
        with torch.inference_mode():
            logs.append(torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1))
    expected = float((logs[0].exp() * (logs[0] - logs[1])).sum(dim=-1).mean())
    assert expected > 0
    assert measured == pytest.approx(expected, rel=0.02)


def test_fewer_bits_diverge_more(identity: Identity, run: Run) -> None:
    found = [
        run(identity(quant, task="quality", tokens=128)).value("kl_to_reference")
        for quant in ("fp32", "bf16", "nf4")
    ]
    assert found[0] == 0.0
    assert 0 < found[1] < found[2]


def test_the_reference_is_computed_once(identity: Identity, run: Run, cache: Path) -> None:
    first = run(identity("bf16", task="quality", tokens=64, window=32))
    assert "reference" in first.phases()
    (directory,) = (cache / "references").iterdir()
    files = sorted(directory.iterdir())
    assert len(files) == 2
    before = [f.stat().st_mtime_ns for f in files]
    second = run(identity("nf4", task="quality", tokens=64, window=32))
    assert "reference" not in second.phases()
    assert list((cache / "references").iterdir()) == [directory]
    assert [f.stat().st_mtime_ns for f in files] == before
    run({**identity("nf4", task="quality", tokens=64, window=32), "seed": 3})
    assert len(list((cache / "references").iterdir())) == 2


def test_another_configuration_is_another_reference(
    identity: Identity, run: Run, saved_model: Path
) -> None:
    asked = identity(
        "bf16",
        task="quality",
        model={"source": "path", "path": str(saved_model)},
        tokens=64,
        window=32,
        text="random",
    )
    before = run(asked)
    config = json.loads((saved_model / "config.json").read_text())
    (saved_model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    after = run(asked)
    # The rounding of bfloat16, and not the distance between two models.
    assert "reference" in after.phases()
    assert after.value("kl_to_reference") < 10 * before.value("kl_to_reference")


def made(windows: list[torch.Tensor], logits: torch.Tensor) -> Reference:
    recorder = Recorder(lambda event: None, HostClock(), Path())
    return reference_for("weights", "tokens", windows, lambda: lambda ids: logits, recorder)


@pytest.mark.parametrize("spread", [1.0, 10.0, 40.0])
def test_stored_logits_are_close_enough(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 5000, generator=generator) * spread / 4
    logits[0, 0] = -math.inf  # as padded vocabulary entries are
    logits[1] = 3.0  # no spread at all
    reference = made([torch.zeros(50)], logits)
    window = reference.window(0, torch.device("cpu"))
    assert torch.equal(window.top1, logits.argmax(dim=-1))
    finite = logits.isfinite()
    span = logits.nan_to_num(neginf=math.inf).min(-1).values - logits.max(-1).values
    error = (window.logits - logits)[finite].abs().max()
    assert error <= 1.01 * max(float(span.abs().max()), 200.0 * (~finite).any()) / 65535
    exact = torch.log_softmax(logits[2:].double(), dim=-1)
    stored = torch.log_softmax(window.logits[2:].double(), dim=-1)
    divergence = (exact.exp() * (exact - stored)).sum(dim=-1).max()
    assert 0 <= divergence < 1e-7


def test_a_reference_that_is_not_finite_is_refused_and_not_kept(cache: Path) -> None:
    logits = torch.full((4, 16), math.nan)
    with pytest.raises(InputError, match="not finite"):
        made([torch.zeros(4)], logits)
    assert list((cache / "references").iterdir()) == []


def test_without_memory_for_the_reference_perplexity_remains(
    identity: Identity, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(quality, "_reference_logits", no_memory)
    events = run(identity("bf16", task="quality", tokens=64))
    assert events.value("perplexity") > 1
    for name in ("kl_to_reference", "top1_agreement", "reference_perplexity"):
        assert "memory" in events.absent(name)


def test_prompts_hold_no_special_ids_and_follow_the_seed(identity: Identity, recorder: Any) -> None:
    prepared = loading.prepare(identity(), recorder[0])
    ids = tokens.prompt(prepared, 0, 3, 5000)
    assert ids.shape == (3, 5000)
    assert not {prepared.config.bos_token_id, prepared.config.eos_token_id} & set(
        ids.flatten().tolist()
    )
    assert int(ids.max()) < 256
    assert torch.equal(ids, tokens.prompt(prepared, 0, 3, 5000))
    assert not torch.equal(ids, tokens.prompt(prepared, 1, 3, 5000))


def test_texts_come_from_where_they_are_said_to(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    first = tokens.read_text("pydoc_topics", 1000)
    assert len(first) == 1000
    assert first == tokens.read_text("pydoc_topics", 1000)
    plain = tmp_path / "a.txt"
    plain.write_text("some text")
    assert tokens.read_text(str(plain), 4) == "some"
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None, "two"]}), table)
    assert tokens.read_text(str(table), 100) == "one\n\ntwo"
    pyarrow.parquet.write_table(pyarrow.table({"other": ["one"]}), table)
    with pytest.raises(InputError, match="no column 'text'"):
        tokens.read_text(str(table), 100)
    with pytest.raises(InputError, match="no such text"):
        tokens.read_text("nothing", 100)
    with pytest.raises(InputError, match="hub:OWNER/NAME/FILE"):
        tokens.read_text("hub:wikitext", 100)


def test_a_text_needs_a_tokenizer(identity: Identity, run: Run) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        run(identity(task="quality", tokens=64, text="pydoc_topics"))
