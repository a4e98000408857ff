"""A model's own tokenizer, as far as tasks need it, and where a generated text ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.measure import InputError


@dataclass(frozen=True)
class Tokenizer:
    """What makes ids of texts, and texts of ids.

    Attributes
    ----------
    encode : callable
        Ids of a text, without special tokens.
    begin_of_text : tuple of int
        What it puts before a text: mostly one id, or none.
    unknown_id : int or None
        Stands for what it does not know.
    start_id : int or None
        Stands before a text that follows nothing: its begin-of-text, else its end-of-text token.
    decode : callable or None
        Text of ids, without special tokens; None where the engine generates texts and not ids.
    end_ids : tuple of int
        Tokens that end a text.
    """

    encode: Callable[[str], list[int]]
    begin_of_text: tuple[int, ...] = ()
    unknown_id: int | None = None
    start_id: int | None = None
    decode: Callable[[Sequence[int]], str] | None = None
    end_ids: tuple[int, ...] = ()


def text_until(tokens: Iterable[int], until: Sequence[str], tokenizer: Tokenizer) -> str:
    """Text of ``tokens`` up to one that ends it, or to the first of the texts ``until``.

    No more of them are taken than it needs.

    Raises
    ------
    InputError
        The tokenizer does not decode.
    """
    if tokenizer.decode is None:
        raise InputError(
            "this engine makes no texts of token ids: it cannot generate for an evaluation",
            where="task.evaluate",
            fix="Choose a task of multiple choice or of perplexity",
        )
    taken: list[int] = []
    text = ""
    for token in tokens:
        if token in tokenizer.end_ids:
            break
        taken.append(token)
        text = tokenizer.decode(taken)
        if cut_before(text, until) != text:
            break
    return cut_before(text, until)


def cut_before(text: str, until: Sequence[str]) -> str:
    """What stands before each of ``until``, one after the other as lm-evaluation-harness does."""
    for end in filter(None, until):
        text = text.partition(end)[0]
    return text
