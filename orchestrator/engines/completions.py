"""Answers of OpenAI's completions API: a stream's chunks, each with the time at which it arrived.

::

    data: {"choices": [{"text": ...}], ...}      a chunk: mostly one token, sometimes several
    data: [DONE]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.engines.next_tokens import Likeliest, with_chosen
from orchestrator.engines.port import OwnTimings
from orchestrator.measure import InputError

Chunk = dict[str, Any]
DONE = (b"data: [DONE]", b"data:[DONE]")


@dataclass(frozen=True)
class Completion:
    """One prompt answered.

    Attributes
    ----------
    begin_ns : int
        When it was asked.
    arrivals_ns : tuple of int, shape (new_tokens,)
        When each token arrived; those of one chunk together.
    counted_by : str
        How the tokens of a chunk are known: ``timings`` (llama.cpp), ``usage`` of each chunk, or
        ``chunks``, one token each.
    new_tokens, prompt_tokens, cached_tokens : int or None
        As the server's usage counts them.
    own : OwnTimings or None
        The server's own.
    ended : str or None
        Its finish_reason.
    """

    begin_ns: int
    arrivals_ns: tuple[int, ...]
    counted_by: str
    new_tokens: int | None
    prompt_tokens: int | None
    cached_tokens: int | None
    own: OwnTimings | None
    text: str
    ended: str | None


def read_completion(begin_ns: int, chunks: Sequence[tuple[int, Chunk]]) -> Completion:
    """Times and counts out of a stream's chunks, each with the time at which it arrived."""
    arrivals: list[int] = []
    text: list[str] = []
    usage: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    counted_by, ended = "chunks", None
    for at_ns, chunk in chunks:
        choice: dict[str, Any] = next(iter(chunk.get("choices") or ()), {})
        piece = choice.get("text") or ""
        ended = choice.get("finish_reason") or ended
        timings = chunk.get("timings") or timings
        usage = chunk.get("usage") or usage
        text.append(piece)
        if chunk.get("timings"):
            counted_by, count = "timings", int(timings.get("predicted_n", 0))
        elif chunk.get("usage") and choice:
            counted_by, count = "usage", int(usage.get("completion_tokens", 0))
        else:
            count = len(arrivals) + (counted_by == "chunks" and piece != "")
        arrivals += [at_ns] * (count - len(arrivals))
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", timings.get("cache_n"))
    own = None
    if "prompt_ms" in timings and "predicted_ms" in timings:
        own = OwnTimings(timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3)
    return Completion(
        begin_ns=begin_ns,
        arrivals_ns=tuple(arrivals),
        counted_by=counted_by,
        new_tokens=usage.get("completion_tokens"),
        prompt_tokens=usage.get("prompt_tokens"),
        cached_tokens=cached,
        own=own,
        text="".join(text),
        ended=ended,
    )


def stream_lines(reads: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Lines with data or an error, each with the time of the read that brought its end."""
    rest = b""
    for at_ns, data in reads:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith((b"data:", b"error:")):
                yield at_ns, line.rstrip()
    if rest.startswith((b"data:", b"error:")):
        yield reads[-1][0], rest


def text_of(answer: Mapping[str, Any]) -> str:
    """What was generated, of an answer at once."""
    try:
        return str(answer["choices"][0]["text"] or "")
    except (KeyError, IndexError, TypeError) as error:
        raise InputError("its answer has no text", where="engine=endpoint") from error


def likeliest_next(answer: Mapping[str, Any], chosen: int | None = None) -> Likeliest | None:
    """Ids and log-probabilities of the likeliest next tokens, as llama.cpp gives them; or None."""
    try:
        return with_chosen(answer["choices"][0]["logprobs"]["content"], chosen) or None
    except (KeyError, IndexError, TypeError):
        return None


def prompt_logprobs(answer: Mapping[str, Any]) -> list[dict[int, float]] | None:
    """Of each token of the prompt but the first: log-probabilities by id, as vLLM gives them."""
    try:
        _, *rest = answer["choices"][0]["prompt_logprobs"]
        return [{int(i): float(each["logprob"]) for i, each in row.items()} for row in rest]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None


def error_message(body: bytes) -> str:
    """What an error's body says, in one line."""
    from orchestrator.errors import one_line

    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        return one_line(text) if text.strip() else "no reason"
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return one_line(error)
