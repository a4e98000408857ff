"""A GGUF file's tokenizer splits a text as the file says, whichever engine reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines.port import Work
from orchestrator.engines.registry import ENGINES
from testing.gguf import of_gguf, rewritten

Identity = Callable[..., dict[str, Any]]
TEXT = "ab1212 a12b"
# GPT-2's splitting leaves the digits of a number together, and so would merge 1 and 2.
WORDS = ["a", "b", "ab", "1", "2", "12", "\u0120"]


def split_as(tiny_gguf: Path, target: Path, name: str) -> Path:
    fields = {
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [*WORDS, *(f"t{i}" for i in range(256 - len(WORDS)))],
        "tokenizer.ggml.merges": ["a b", "1 2"],
        "tokenizer.ggml.bos_token_id": 254,
        "tokenizer.ggml.eos_token_id": 255,
    }
    return rewritten(tiny_gguf, target / f"{name}.gguf", fields)


def ids_of(asked: dict[str, Any], recorder: Any) -> list[int] | str:
    engine = ENGINES.find(asked["engine"]["name"])
    session = engine.prepare(asked, recorder[0]).load(Work(tokens=16))
    found = session.tokenizer()
    ids = found if isinstance(found, str) else found.encode(TEXT)
    session.close()
    return ids


@pytest.mark.usefixtures("converts_here")
@pytest.mark.parametrize(("name", "numbers"), [("smollm", "1 2 1 2"), ("gpt-2", "12 12")])
def test_both_engines_read_the_same_tokens(
    identity: Identity, recorder: Any, tiny_gguf: Path, tmp_path: Path, name: str, numbers: str
) -> None:
    model = of_gguf(split_as(tiny_gguf, tmp_path, name))
    found = ids_of(identity(model=model), recorder)
    assert found == ids_of(identity("source", model=model, engine="llamacpp"), recorder)
    assert " ".join(WORDS[int(i)] for i in found).startswith(f"ab {numbers} \u0120 a")


@pytest.mark.usefixtures("converts_here")
def test_a_splitting_that_transformers_does_not_know_is_said(
    identity: Identity, recorder: Any, tiny_gguf: Path, tmp_path: Path
) -> None:
    model = of_gguf(split_as(tiny_gguf, tmp_path, "deepseek-llm"))
    found = ids_of(identity(model=model), recorder)
    assert isinstance(found, str)
    assert "transformers does not split a text as tokenizer.ggml.pre = deepseek-llm" in found
    assert "\n" not in found
