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
from orchestrator.errors import one_line
from orchestrator.measure import InputError

Chunk = dict[str, Any]
_DONE = b"[DONE]"
# Fields of server-sent events; a comment has none.
_FIELDS = (b"data", b"error", b"event", b"id", b"retry", b"")
# finish_reason of an answer that the model did not end.
_BROKEN_OFF = ("abort", "content_filter", "error")
# Of one answer: a count beyond that is none.
_MOST_TOKENS = 1 << 24
_SHOWN_LETTERS = 80
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Stream:
    """What a server sent as a stream.

    Attributes
    ----------
    chunks : list of (int, Chunk)
        Each with the time of the read that brought its end.
    ended : bool
        It said that this was all.
    problem : str or None
        The first thing that was wrong with it.
    """

    chunks: list[tuple[int, Chunk]]
    ended: bool
    problem: str | None


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
    miscounted : bool
        Text came that its timings or usage count no token of.
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
    miscounted: bool
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
    counted_by, miscounted, ended = "chunks", False, None
    stopped_ns: int | None = None
    for at_ns, chunk in chunks:
        choice: dict[str, Any] = next(iter(chunk.get("choices") or ()), {})
        piece = choice.get("text") or ""
        ended = choice.get("finish_reason") or ended
        timings = chunk.get("timings") or timings
        usage = chunk.get("usage") or usage
        text.append(piece)
        by, count = _told(chunk, choice)
        # A total that comes after the text says nothing of which chunk has which tokens.
        if count and (counted_by != "chunks" or not arrivals):
            counted_by = by
        else:
            count = len(arrivals) + (counted_by == "chunks" and piece != "")
        if piece and count <= len(arrivals) and not choice.get("finish_reason"):
            miscounted = True
        arrivals += [at_ns] * (count - len(arrivals))
        if choice.get("finish_reason") == "stop" and not piece:
            stopped_ns = at_ns
    # The token by which a model ends its answer has no text, and many servers count it.
    one_more = usage.get("completion_tokens") == len(arrivals) + 1
    if counted_by == "chunks" and arrivals and one_more and stopped_ns is not None:
        arrivals.append(stopped_ns)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", timings.get("cache_n"))
    own = None
    if "prompt_ms" in timings and "predicted_ms" in timings:
        own = OwnTimings(timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3)
    return Completion(
        begin_ns=begin_ns,
        arrivals_ns=tuple(arrivals),
        counted_by=counted_by,
        miscounted=miscounted,
        new_tokens=usage.get("completion_tokens"),
        prompt_tokens=usage.get("prompt_tokens"),
        cached_tokens=cached,
        own=own,
        text="".join(text),
        ended=ended,
    )


def fault_of(answer: Completion, prompt_tokens: int, new_tokens: int) -> str | None:
    """Why it answers something else than was asked, or its counts cannot be believed; or None.

    Fewer tokens than asked for are no fault of it: a model may stop by itself.
    """
    got = len(answer.arrivals_ns)
    if answer.prompt_tokens not in (None, prompt_tokens):
        return f"it read {answer.prompt_tokens} prompt tokens, not the {prompt_tokens} sent"
    if answer.ended in _BROKEN_OFF:
        return f"it broke its answer off (finish_reason: {answer.ended})"
    if answer.miscounted:
        return f"text came of which its {answer.counted_by} counts no token"
    if answer.new_tokens not in (None, got):
        return (
            f"{answer.new_tokens} tokens came in {got} chunks, and it does not say which in which"
        )
    return f"it gave {got} tokens, and {new_tokens} were asked for" if got > new_tokens else None


def _told(chunk: Chunk, choice: Chunk) -> tuple[str, int]:
    """How many tokens there are by now, as a chunk tells; 0 where it does not."""
    if timings := chunk.get("timings"):
        return "timings", timings.get("predicted_n") or 0
    return "usage", (chunk.get("usage") or {}).get("completion_tokens") or 0 if choice else 0


def read_stream(reads: Sequence[tuple[int, bytes]]) -> Stream:
    """The events of a stream: what came, each read with its time.

    An event is read with the line that makes it JSON: servers end events with an empty line, or
    forget it, and may write one in several lines.
    """
    chunks: list[tuple[int, Chunk]] = []
    ended, problem, kind, held, streams = False, None, b"", b"", False
    for at_ns, line in _lines(reads):
        field, _, said = line.partition(b":")
        said = said.strip()
        streams |= field in _FIELDS and line != b""
        if not line:
            problem = problem or ("a chunk of its answer is no JSON" if held else None)
            kind = held = b""
        elif field == b"event":
            kind = said
        # One without data keeps the connection alive.
        elif field in (b"data", b"error") and said:
            held += said
            if held == _DONE:
                ended, held = True, b""
                continue
            try:
                chunk = json.loads(held)
            except (ValueError, RecursionError):
                continue
            wrong = _wrong(chunk, held, is_error=b"error" in (kind, field))
            held = b""
            if wrong is None:
                chunks.append((at_ns, chunk))
            problem = problem or wrong
    if not streams:
        body = b"".join(data for _, data in reads)[:_SHOWN_LETTERS].strip()
        shown = (
            "compressed data"
            if body.startswith(_GZIP)
            else one_line(body.decode("utf-8", "replace"))
        )
        problem = f"its answer is no stream: {shown}" if body else "its answer is empty"
    return Stream(chunks, ended, problem)


def is_end(line: bytes) -> bool:
    """Whether a line of a stream says that this was all."""
    field, _, said = line.partition(b":")
    return field == b"data" and said.strip() == _DONE


def _lines(reads: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Each line with the time of the read that brought its end."""
    rest = b""
    for at_ns, data in reads:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield at_ns, line.rstrip(b"\r")
    if rest:
        yield reads[-1][0], rest.rstrip(b"\r")


def _wrong(chunk: Any, said: bytes, *, is_error: bool) -> str | None:
    """What is wrong with an event; None of a chunk that can be read."""
    is_error |= not isinstance(chunk, dict) or chunk.get("object") == "error"
    if is_error or chunk.get("error"):
        return f"an error in its answer: {error_message(said)}"
    if not _is_chunk(chunk):
        shown = one_line(said[:_SHOWN_LETTERS].decode(errors="replace"))
        return f"a chunk of its answer is not OpenAI's: {shown}"
    return None


def _is_chunk(chunk: Chunk) -> bool:
    """Whether all that is read of a chunk is what it should be, or not there."""
    choices, usage, timings = (chunk.get(name) or {} for name in ("choices", "usage", "timings"))
    if not (isinstance(choices, list | dict) and isinstance(usage, dict)):
        return False
    if not isinstance(timings, dict):
        return False
    cached = usage.get("prompt_tokens_details") or {}
    if not isinstance(cached, dict):
        return False
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    counts += [cached.get("cached_tokens"), timings.get("cache_n"), timings.get("predicted_n")]
    times = [timings.get(name, 0.0) for name in ("prompt_ms", "predicted_ms")]
    return (
        all(isinstance(each, dict) for each in choices)
        and all(isinstance(each.get("text") or "", str) for each in choices)
        and all(each is None or _is_count(each) for each in counts)
        and all(isinstance(each, int | float) for each in times)
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST_TOKENS


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
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        return one_line(text) if text.strip() else "no reason"
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return one_line(error)
