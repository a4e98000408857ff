"""What a server sent, read as the tokens of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.engines.completions import fault_of, read_completion, read_stream
from orchestrator.tasks.serving.orders import OK, Answer
from orchestrator.tasks.serving.timed_reads import body_of


def answer_of(
    reads: Sequence[tuple[int, bytes]],
    *,
    begin_ns: int,
    due_ns: int,
    sent_ns: int,
    ended_ns: int | None,
    status: str | None,
    measured: bool,
    prompt_tokens: int,
    asked_tokens: int,
) -> Answer:
    """One request as it went.

    Parameters
    ----------
    reads : sequence of (int, bytes)
        As of :class:`orchestrator.tasks.serving.timed_reads.TimedResponse`.
    begin_ns : int
        Of the load.
    status : str or None
        How it failed; None where all came.
    prompt_tokens, asked_tokens : int
        Sent, and asked for at most.
    """
    stream = read_stream(list(body_of(reads)))
    found = read_completion(sent_ns, stream.chunks)
    if status is None:
        status = stream.problem
    if status is None and not stream.ended:
        status = "its answer has no end"
    if status is None and not found.arrivals_ns:
        status = "its answer has no token"
    if status is None:
        status = fault_of(found, prompt_tokens, asked_tokens)
    got = len(found.arrivals_ns)
    if (status, found.ended, found.new_tokens) == (None, "length", None) and got < asked_tokens:
        status = f"{asked_tokens} tokens came in {got} chunks, and it does not say which in which"
    return Answer(
        due_s=(due_ns - begin_ns) / 1e9,
        sent_s=(sent_ns - begin_ns) / 1e9,
        ended_s=None if ended_ns is None else (ended_ns - begin_ns) / 1e9,
        arrivals_s=tuple((at_ns - begin_ns) / 1e9 for at_ns in found.arrivals_ns),
        status=status or OK,
        measured=measured,
        asked_tokens=asked_tokens,
        prompt_tokens=found.prompt_tokens,
        new_tokens=found.new_tokens,
        cached_tokens=found.cached_tokens,
        counted_by=found.counted_by,
    )
