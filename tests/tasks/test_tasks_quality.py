"""Quality: identities that must hold, and the reference kept without loss that matters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engines import reference
from orchestrator.engines import transformers as loading
from orchestrator.engines.distance import Distance, top_kl, whole_kl
from orchestrator.engines.port import NextLogprobs, Session
from orchestrator.engines.reference import Reference, reference_for
from orchestrator.engines.text_windows import cut
from orchestrator.engines.texts import read_text
from orchestrator.engines.transformers import convert, tokens
from orchestrator.measure import ConfigError, HostClock, InputError, Recorder
from testing.checks import check_of
from testing.gguf import of_gguf

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("option", "asked"),
    [
        ("text", {"task": "quality"}),
        ("prompt", {"task": "inference", "prompt_tokens": 8, "new_tokens": 2}),
    ],
)
def test_a_text_that_is_not_there_is_a_mistake(
    identity: Identity, tmp_path: Path, option: str, asked: dict[str, Any]
) -> None:
    check, file = check_of(str(asked["task"])), tmp_path / "here.txt"
    with pytest.raises(ConfigError, match=f"task.{option}=.*here.txt: no such text"):
        check(identity(**asked, **{option: str(file)}))
    file.write_text("a text")
    # Of a dataset on the hub nobody is asked while planning.
    for there in (str(file), "random", "pydoc_topics", "hub:nobody/nothing/here.txt"):
        assert check(identity(**asked, **{option: there})) is None


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
    assert measured == pytest.approx(math.exp(torch.cat(losses).mean().item()), rel=1e-5)


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


def test_another_transformers_makes_its_own_reference_and_conversion(
    identity: Identity, run: Run, reads_bytes: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = identity("bf16", task="quality", tokens=8, model=of_gguf(reads_bytes))
    with monkeypatch.context() as before:
        before.setattr(convert, "own_version", lambda name: "0.1")
        before.setattr(reference, "version", lambda name: "0.1")
        run(asked)
    run(asked)
    for kind in ("references", "converted"):
        assert len(list((cache / kind).iterdir())) == 2


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


class Spoken(Session):
    """Says what it was given, whatever it is asked."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logprobs = torch.log_softmax(logits, dim=-1)

    def next_logprobs(self, ids: Any, targets: Any) -> NextLogprobs:
        found = self.logprobs[: len(targets)]
        wanted = found[range(len(targets)), list(targets)]
        return NextLogprobs(wanted.double().numpy(), found.argmax(-1).numpy(), found.numpy())

    ready = generate = footprint = tokenizer = prove = None  # type: ignore[assignment]


Spoken.__abstractmethods__ = frozenset()


def made(identity: Identity, positions: int, logits: torch.Tensor) -> Reference:
    recorder = Recorder(lambda event: None, HostClock(), Path())
    windows = cut([0] * (positions + 1), positions)
    found = reference_for(identity(), windows, recorder, Spoken(logits))
    assert isinstance(found, Reference), found
    return found


@pytest.mark.parametrize("spread", [1.0, 10.0, 40.0])
def test_stored_logprobs_are_close_enough(identity: Identity, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 5000, generator=generator) * spread / 4
    logits[0, 0] = -math.inf  # as padded vocabulary entries are
    logits[1] = 3.0  # no spread at all
    exact = torch.log_softmax(logits, dim=-1)
    (window,) = made(identity, 50, logits)
    assert window.top1.tolist() == logits.argmax(dim=-1).tolist()
    stored = torch.from_numpy(window.logprobs)
    finite = logits.isfinite()
    span = exact.nan_to_num(neginf=math.inf).min(-1).values - exact.max(-1).values
    error = (stored - exact)[finite].abs().max()
    assert error <= 2.02 * max(float(span.abs().max()), 200.0 * (~finite).any()) / 65535
    certain = torch.log_softmax(logits[2:].double(), dim=-1)
    divergence = whole_kl(certain.numpy(), torch.log_softmax(stored[2:].double(), -1).numpy())
    assert abs(divergence).max() < 1e-7
    assert stored.double().exp().sum(-1).numpy() == pytest.approx(1, abs=1e-6)


def test_rounding_makes_no_divergence_negative() -> None:
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)) * 4
    one = torch.log_softmax(logits, -1)
    other = torch.log_softmax(logits + 1e-6 * torch.randn_like(logits), -1)
    found = whole_kl(one.numpy(), other.numpy())
    assert 0 <= found.min() <= found.max() < 1e-6


def test_a_reference_that_is_not_finite_is_refused_and_not_kept(
    identity: Identity, cache: Path
) -> None:
    recorder = Recorder(lambda event: None, HostClock(), Path())
    speaks = Spoken(torch.full((4, 16), math.nan))
    assert "not finite" in str(reference_for(identity(), cut([0] * 5, 4), recorder, speaks))
    assert list((cache / "references").iterdir()) == []


def test_without_memory_for_the_reference_perplexity_remains(
    identity: Identity, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = loading.load_unmeasured

    def no_memory(prepared: Any, quant: Any, *more: Any, **named: Any) -> Any:
        if quant["dtype"] == "float32":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(prepared, quant, *more, **named)

    monkeypatch.setattr(loading, "load_unmeasured", no_memory)
    events = run(identity("bf16", task="quality", tokens=64))
    assert events.value("perplexity") > 1
    for name in ("kl_to_reference", "top1_agreement", "reference_perplexity"):
        assert "memory" in events.absent(name)


def test_an_engine_that_names_some_tokens_has_a_metric_of_its_own() -> None:
    import numpy as np

    p = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    whole = NextLogprobs(np.array([p[0, 1]], np.float64), np.array([0]), p)
    ids = np.array([[1, 0]], np.int32)
    q = np.log(np.array([[0.6, 0.3]], np.float32))
    some = NextLogprobs(np.array([q[0, 0]], np.float64), np.array([1]), q, ids)
    events: list[Any] = []
    distance = Distance()
    distance.add(some, whole)
    distance.record(Recorder(events.append, HostClock(), Path()), "")
    found = {event["name"]: event["value"] for event in events}
    rest = 0.2 * math.log(0.2 / 0.1)
    expected = 0.3 * math.log(0.3 / 0.6) + 0.5 * math.log(0.5 / 0.3) + rest
    assert found["kl_top_to_reference"] == pytest.approx(expected, rel=1e-5)
    assert "kl_to_reference" not in found
    assert found["top1_agreement"] == 0.0
    assert found["perplexity"] == pytest.approx(1 / 0.6)
    assert found["reference_perplexity"] == pytest.approx(1 / 0.3)


@given(
    st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
    st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
    st.integers(1, 5),
)
def test_a_distance_over_some_tokens_never_exceeds_the_whole(
    a: list[float], b: list[float], top: int
) -> None:
    import numpy as np

    p, q = (np.log(np.array([values], np.float64) / sum(values)) for values in (a, b))
    whole = float(whole_kl(p, q)[0])
    assert whole == pytest.approx(float((np.exp(p) * (p - q)).sum()))
    ids = np.argsort(-q, axis=-1)[:, :top]
    found = float(top_kl(p, ids, np.take_along_axis(q, ids, axis=-1))[0])
    assert 0 <= found <= whole + 1e-5
    if top == 5:
        assert found == pytest.approx(whole, abs=1e-5)


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

    first = read_text("pydoc_topics", 1000)
    assert len(first) == 1000
    assert first == read_text("pydoc_topics", 1000)
    plain = tmp_path / "a.txt"
    plain.write_text("some text")
    assert read_text(str(plain), 4) == "some"
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None, "two"]}), table)
    assert read_text(str(table), 100) == "one\n\ntwo"
    pyarrow.parquet.write_table(pyarrow.table({"other": ["one"]}), table)
    with pytest.raises(InputError, match="no column 'text'"):
        read_text(str(table), 100)
    with pytest.raises(InputError, match="no such text"):
        read_text("nothing", 100)
    with pytest.raises(InputError, match="hub:OWNER/NAME/FILE"):
        read_text("hub:wikitext", 100)


def test_a_text_needs_a_tokenizer(identity: Identity, run: Run) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        run(identity(task="quality", tokens=64, text="pydoc_topics"))
