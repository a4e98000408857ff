"""What a server sent, read as the tokens of an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence

from orchestrator.engines.completions import DONE, error_message, read_completion, stream_lines
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
    """
    chunks, ended = [], False
    for at_ns, line in stream_lines(list(body_of(reads))):
        if line in DONE:
            ended = True
            continue
        kind, _, said = line.partition(b":")
        try:
            chunk = json.loads(said)
        except ValueError:
            status = status or "a chunk of its answer is no JSON"
            continue
        if kind == b"error" or not isinstance(chunk, dict) or chunk.get("error"):
            status = status or f"an error in its answer: {error_message(said)}"
            continue
        chunks.append((at_ns, chunk))
    found = read_completion(sent_ns, chunks)
    got = len(found.arrivals_ns)
    if status is None and not ended:
        status = "its answer has no end"
    if status is None and not got:
        status = "its answer has no token"
    if status is None and found.new_tokens not in (None, got):
        status = f"{found.new_tokens} tokens came in {got} chunks, and it does not say which"
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
