"""A GGUF file's tokenizer splits a text as the file says, whichever engine reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from orchestrator.engines.gguf_files import GgufModel
from orchestrator.engines.port import Work
from orchestrator.engines.registry import ENGINES
from testing.gguf import of_gguf, rewritten

Identity = Callable[..., dict[str, Any]]
TEXT = "ab1919 a19b"
# GPT-2's splitting leaves the digits of a number together, and so would merge 1 and 9.
WORDS = [*list(bytes_to_unicode().values())[:252], "ab", "19", "<s>", "</s>"]


def split_as(tiny_gguf: Path, target: Path, name: str | None, **more: Any) -> Path:
    fields = {
        **({"tokenizer.ggml.pre": name} if name else {}),
        "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.merges": ["a b", "1 9"],
        "tokenizer.ggml.bos_token_id": 254,
        "tokenizer.ggml.eos_token_id": 255,
        **{f"tokenizer.ggml.{field}": value for field, value in more.items()},
    }
    return rewritten(tiny_gguf, target / f"{name}.gguf", fields)


def pieces_file(tiny_gguf: Path, target: Path, **more: Any) -> Path:
    """A vocabulary as SentencePiece has it: a blank is a letter, and most are bytes."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(249))]
    words += ["\u2581", "a", "\u2581a", "\u2581\u2581"]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.merges": ["\u2581 a", "\u2581 \u2581"],
        "tokenizer.ggml.scores": [-1.0 * index for index in range(256)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 249, *[1] * 4],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{field}": value for field, value in more.items()},
    }
    return rewritten(tiny_gguf, target / "pieces.gguf", fields)


def read_by(asked: dict[str, Any], recorder: Any) -> tuple[list[int], list[list[int]]] | str:
    engine = ENGINES.find(asked["engine"]["name"])
    session = engine.prepare(asked, recorder[0]).load(Work(tokens=16))
    found = session.tokenizer()
    if not isinstance(found, str):
        found = [*found.begin_of_text], [found.encode(text) for text in (TEXT, " a", "  a")]
    session.close()
    return found


def read_by_both(identity: Identity, recorder: Any, file: Path) -> tuple[list[int], list[str]]:
    model = of_gguf(file)
    found = read_by(identity(model=model), recorder)
    assert not isinstance(found, str), found
    assert found == read_by(identity("source", model=model, engine="llamacpp"), recorder)
    words = GgufModel(file).value("tokenizer.ggml.tokens")
    return found[0], [" ".join(words[i] for i in ids) for ids in found[1]]


@pytest.mark.usefixtures("converts_here")
@pytest.mark.parametrize(
    ("name", "numbers", "begins"),
    [
        ("smollm", "1 9 1 9", []),
        ("gpt-2", "19 19", []),
        (None, "19 1 9", []),
        # llama.cpp begins a text of theirs, whether the file says so or not.
        ("llama-bpe", "19 1 9", [254]),
        ("tekken", "1 9 1 9", [254]),
    ],
)
def test_both_engines_read_the_same_tokens(
    identity: Identity,
    recorder: Any,
    tiny_gguf: Path,
    tmp_path: Path,
    name: str | None,
    numbers: str,
    begins: list[int],
) -> None:
    file = split_as(tiny_gguf, tmp_path, name)
    begin, (text, *_) = read_by_both(identity, recorder, file)
    assert begin == begins
    assert text.startswith(f"ab {numbers} \u0120 a")


@pytest.mark.usefixtures("converts_here")
def test_a_file_that_says_so_begins_no_text(
    identity: Identity, recorder: Any, tiny_gguf: Path, tmp_path: Path
) -> None:
    file = split_as(tiny_gguf, tmp_path, "llama-bpe", add_bos_token=False)
    assert read_by_both(identity, recorder, file)[0] == []


@pytest.mark.usefixtures("converts_here")
@pytest.mark.parametrize(
    ("said", "one", "two"),
    [
        ({}, "\u2581 \u2581a", "\u2581\u2581 \u2581a"),
        ({"add_space_prefix": False}, "\u2581a", "\u2581 \u2581a"),
    ],
)
def test_both_engines_put_a_blank_before_a_text_where_the_file_says_so(
    identity: Identity,
    recorder: Any,
    tiny_gguf: Path,
    tmp_path: Path,
    said: dict[str, Any],
    one: str,
    two: str,
) -> None:
    begin, (_, *texts) = read_by_both(identity, recorder, pieces_file(tiny_gguf, tmp_path, **said))
    assert (begin, texts) == ([1], [one, two])


@pytest.mark.usefixtures("converts_here")
def test_a_splitting_that_transformers_does_not_know_is_said(
    identity: Identity, recorder: Any, tiny_gguf: Path, tmp_path: Path
) -> None:
    model = of_gguf(split_as(tiny_gguf, tmp_path, "deepseek-coder"))
    found = read_by(identity(model=model), recorder)
    assert isinstance(found, str)
    assert "transformers does not split a text as llama.cpp does" in found
    assert "tokenizer.ggml.pre = deepseek-coder" in found
    assert "\n" not in found
