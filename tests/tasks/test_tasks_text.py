"""The tokens of quality are the text's, in the same windows on every engine."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.engines import texts
from orchestrator.engines import transformers as loading
from orchestrator.engines.text_windows import cut, needed_context, window_tokens
from orchestrator.engines.texts import read_text
from orchestrator.engines.transformers.tokens import load_tokenizer
from orchestrator.measure import InputError
from testing.gguf import of_gguf, rewritten
from tests.tasks.test_tasks_files import of

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
WORDS = ["<unk>", "<s>", "</s>", "a", "b", "ab", *(f"t{i}" for i in range(100))]
TEXT = "a b ab t7 a t9 b b ab t50 " * 40


def write_tokenizer(directory: Path, *, begins: bool, words: list[str] | None = None) -> None:
    """A tokenizer of whole words, which puts ``<s>`` before a text or does not."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(words or WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)


@pytest.fixture(autouse=True)
def text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "read_text", lambda name, characters, **where: TEXT[:characters])


def test_windows_predict_each_token_once() -> None:
    windows = cut(range(8), 3, [99])
    assert windows.inputs == ((0, 1, 2), (3, 4, 5), (6,))
    assert windows.targets == ((1, 2, 3), (4, 5, 6), (7,))
    assert windows.facts()["begin_of_text"] == [99]
    assert cut(range(8), 3).digest != windows.digest
    assert cut(range(8), 4).digest != cut(range(8), 3).digest
    assert cut(range(7), 3).inputs == ((0, 1, 2), (3, 4, 5))
    assert window_tokens(512, 8192) == 512
    assert window_tokens(512, 100) == 98
    assert window_tokens(512, None) == 512
    assert needed_context(32) == 34


@pytest.mark.parametrize("begins", [True, False])
def test_begin_of_text_stands_before_every_window(
    identity: Identity, run: Run, recorder: Any, saved_model: Path, begins: bool
) -> None:
    write_tokenizer(saved_model, begins=begins)
    asked = identity(task="quality", model=of(saved_model), tokens=100, window=32)
    events = run(asked)
    facts = events.fact("quality_windows")
    assert facts["begin_of_text"] == ([1] if begins else [])
    assert (facts["count"], facts["tokens"]) == (4, 32)
    assert events.fact("quality_text") == "pydoc_topics"
    prepared = loading.prepare(asked, recorder[0])
    model = loading.load_unmeasured(prepared, asked["quant"], asked["device"], 0)
    ids = [WORDS.index(word) for word in TEXT.split()][:101]
    losses = []
    for start in range(0, 100, 32):
        stop = min(start + 32, 100)
        fed = torch.tensor([*facts["begin_of_text"], *ids[start:stop]])
        logits = model(input_ids=fed[None]).logits[0, len(facts["begin_of_text"]) :]
        target = torch.tensor(ids[start + 1 : stop + 1])
        losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
    assert events.value("perplexity") == pytest.approx(
        math.exp(torch.cat(losses).mean().item()), rel=1e-5
    )


def test_the_reference_is_of_the_same_windows(
    identity: Identity, run: Run, saved_model: Path
) -> None:
    write_tokenizer(saved_model, begins=True)
    asked = [
        identity(quant, task="quality", model=of(saved_model), tokens=60, window=20)
        for quant in ("fp32", "bf16")
    ]
    full, half = map(run, asked)
    assert full.value("kl_to_reference") == 0.0
    assert 0 < half.value("kl_to_reference") < 0.01
    assert half.value("reference_perplexity") == pytest.approx(full.value("perplexity"), rel=1e-4)
    assert full.fact("quality_windows") == half.fact("quality_windows")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tekken.json", "{}", "tekken.json, is of a kind that is not read"),
        ("tokenizer.json", "{", "cannot be read"),
        (None, "", "no tokenizer"),
    ],
)
@pytest.mark.parametrize("task", ["quality", "inference"])
def test_a_tokenizer_that_cannot_be_read_leaves_quality_absent(
    identity: Identity,
    run: Run,
    saved_model: Path,
    name: str | None,
    content: str,
    says: str,
    task: str,
) -> None:
    if name:
        (saved_model / name).write_text(content)
    sizes = {"tokens": 40} if task == "quality" else {"quality_tokens": 40, "prompt_tokens": 8}
    events = run(identity(task=task, model=of(saved_model), **sizes))
    for metric in ("perplexity", "kl_to_reference", "top1_agreement", "reference_perplexity"):
        assert says in events.absent(metric)
    assert not any(e["e"] == "fact" and e["key"] == "quality_text" for e in events)


def test_random_tokens_are_said_where_they_are_meant(
    identity: Identity, run: Run, saved_model: Path
) -> None:
    events = run(identity(task="quality", model=of(saved_model), tokens=40, text="random"))
    assert events.fact("quality_text") == "random tokens"
    assert events.fact("quality_windows")["begin_of_text"] == []
    assert run(identity(task="quality", tokens=40)).fact("quality_text") == "random tokens"


def test_ids_past_the_embedding_are_another_model_s(
    identity: Identity, run: Run, saved_model: Path
) -> None:
    config = json.loads((saved_model / "config.json").read_text())
    words = ["<unk>", "<s>", "</s>", *(f"x{i}" for i in range(config["vocab_size"])), "a", "b"]
    write_tokenizer(saved_model, begins=False, words=words)
    with pytest.raises(InputError, match=r"gives the id 26\d, the model has 256 embeddings"):
        run(identity(task="quality", model=of(saved_model), tokens=40))


def test_a_tokenizer_that_does_not_know_the_text_is_an_error(
    identity: Identity, run: Run, saved_model: Path
) -> None:
    write_tokenizer(saved_model, begins=False, words=["<unk>", "<s>", "</s>", "a"])
    with pytest.raises(InputError, match="knows 9 of 41 tokens"):
        run(identity(task="quality", model=of(saved_model), tokens=40))


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="no wheel here")
@pytest.mark.parametrize("begins", [True, False])
def test_both_engines_score_the_same_tokens_in_the_same_windows(
    identity: Identity,
    run: Run,
    reads_bytes: Path,
    tmp_path: Path,
    begins: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "b" * 100 + "a" * 20_000
    monkeypatch.setattr(texts, "read_text", lambda name, characters, **where: text[:characters])
    file = rewritten(reads_bytes, tmp_path / "b.gguf", {"tokenizer.ggml.add_bos_token": begins})
    ours = run(identity(task="quality", model=of_gguf(file), tokens=200, window=512))
    theirs = run(
        identity(
            engine="llamacpp",
            model=of_gguf(file),
            prompt_tokens=8,
            new_tokens=2,
            quality_tokens=200,
        )
    )
    assert theirs.fact("quality_windows") == ours.fact("quality_windows")
    assert ours.fact("quality_windows")["begin_of_text"] == ([0] if begins else [])
    # The context of 128 tokens cuts the text on both.
    assert ours.fact("quality_windows")["tokens"] == 126
    assert theirs.value("perplexity") == pytest.approx(ours.value("perplexity"), rel=0.02)


def test_a_tokenizer_that_draws_its_tokens_is_said(
    identity: Identity, run: Run, saved_model: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    pairs = {"te": 100, "xt": 101, "di": 102, "se": 103}
    merges = [(pair[0], pair[1]) for pair in pairs]
    drawing = Tokenizer(models.BPE({**letters, **pairs}, merges, dropout=0.3))
    drawing.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=drawing).save_pretrained(saved_model)
    measured = run(identity(task="quality", model=of(saved_model), tokens=60, window=20))
    assert "reads the same text differently each time" in str(measured.absent("perplexity"))


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_a_text_is_read_as_the_tokenizers_file_says(
    identity: Identity, recorder: Any, saved_model: Path, kind: str
) -> None:
    """By transformers' class of the first name it would be read without what splits digits."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["1", "2", "12", *"abcdefghijklmnopqrstuvwxyz", "\u0120"]
    one_by_one = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("1", "2")]))
    one_by_one.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    one_by_one.decoder = decoders.ByteLevel()
    one_by_one.save(str(saved_model / "tokenizer.json"))
    (saved_model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    prepared = loading.prepare(identity(model=of(saved_model)), recorder[0])
    found = load_tokenizer(prepared, trust_remote_code=False)
    assert not isinstance(found, str)
    assert found.encode("1212") == [0, 1, 0, 1]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one\r\ntwo", encoding="utf-8-sig", newline="")
    assert read_text(str(file), 100) == "one\ntwo"
