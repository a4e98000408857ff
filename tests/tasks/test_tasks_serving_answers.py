"""What a server sent, read as tokens: HTTP's chunks, a stream's lines, and how each may end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.tasks.serving.answers import answer_of
from orchestrator.tasks.serving.orders import OK, Answer
from orchestrator.tasks.serving.timed_reads import body_of

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%s\r\n"
CHUNKED = HEAD % b"Transfer-Encoding: chunked\r\n"
PLAIN = HEAD % b"Content-Length: 99\r\n"
TOKEN = b'data: {"choices": [{"text": "a"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=20) | st.just(b"\r\n0\r\n\r\n"), max_size=6),
    cuts=st.sets(st.integers(1, 200), max_size=10),
    ended=st.booleans(),
)
def test_of_a_chunked_body_each_byte_has_the_time_of_its_read(
    pieces: list[bytes], cuts: set[int], ended: bool
) -> None:
    raw, in_body = CHUNKED, [False] * len(CHUNKED)
    for piece in pieces:
        size = b"%X;x=y\r\n" % len(piece)
        raw += size + piece + b"\r\n"
        in_body += [False] * len(size) + [True] * len(piece) + [False] * 2
    if ended:
        raw += b"0\r\nTrailer: x\r\n\r\n"
        in_body += [False] * 17
    places = sorted(cut for cut in cuts if cut < len(raw))
    bounds = list(zip([0, *places], [*places, len(raw)], strict=True))
    reads = [(number, raw[begin:end]) for number, (begin, end) in enumerate(bounds)]
    wanted = [
        (number, bytes(raw[i] for i in range(begin, end) if in_body[i]))
        for number, (begin, end) in enumerate(bounds)
    ]
    assert list(body_of(reads)) == [(number, body) for number, body in wanted if body]


def test_a_body_that_is_not_chunked_is_all_that_follows_the_head() -> None:
    reads = [(1, PLAIN[:30]), (2, PLAIN[30:] + b"ab"), (3, b"\r\n4\r\n")]
    assert list(body_of(reads)) == [(2, b"ab"), (3, b"\r\n4\r\n")]


def test_no_size_of_a_chunk_ends_what_can_be_read() -> None:
    reads = [(1, CHUNKED + b"2\r\nab\r\noh\r\n"), (2, b"2\r\ncd\r\n")]
    assert list(body_of(reads)) == [(1, b"ab")]


def read(*bodies: bytes, **changes: Any) -> Answer:
    """The answer whose body came in ``bodies``, a millisecond apart, after its head."""
    reads = [(0, PLAIN), *(((at + 1) * 1_000_000, body) for at, body in enumerate(bodies))]
    given: dict[str, Any] = {"begin_ns": -1_000_000, "due_ns": 0, "sent_ns": 500_000}
    given |= {"ended_ns": 9_000_000, "status": None, "measured": True}
    given |= {"prompt_tokens": 7, "asked_tokens": 3}
    return answer_of(reads, **{**given, **changes})


def test_times_count_from_when_the_load_began() -> None:
    found = read(TOKEN, TOKEN + TOKEN, DONE)
    assert (found.due_s, found.sent_s, found.ended_s) == (0.001, 0.0015, 0.010)
    assert found.arrivals_s == (0.002, 0.003, 0.003)
    assert (found.status, found.counted_by) == (OK, "chunks")


def test_a_token_is_there_with_the_end_of_its_line() -> None:
    assert read(TOKEN[:9], TOKEN[9:] + DONE).arrivals_s == (0.003,)


USED = b'data: {"choices": [], "usage": {"completion_tokens": %d, "prompt_tokens": 7}}\n\n'


UNTOLD = "and it does not say which in which"


def event(text: str = "a", count: int | None = None, prompt: int = 7, **choice: Any) -> bytes:
    usage = None if count is None else {"completion_tokens": count, "prompt_tokens": prompt}
    chunk = {"choices": [{"text": text, **choice}], "usage": usage}
    return b"data: %s\n\n" % json.dumps(chunk).encode()


@pytest.mark.parametrize(
    ("bodies", "status"),
    [
        ((TOKEN, USED % 1, DONE), OK),
        ((TOKEN,), "its answer has no end"),
        ((DONE,), "its answer has no token"),
        ((), "its answer is empty"),
        (
            (b'{"choices": [{"text": "a"}]}',),
            'its answer is no stream: {"choices": [{"text": "a"}]}',
        ),
        ((b"\x1f\x8b\x08\x00",), "its answer is no stream: compressed data"),
        ((b"data: {oh\n\n", TOKEN, DONE), "a chunk of its answer is no JSON"),
        ((b"data: 3\n\n", TOKEN, DONE), "an error in its answer: 3"),
        ((TOKEN, b'data: {"error": {"message": "oh"}}\n\n'), "an error in its answer: oh"),
        ((b'error: {"message": "oh"}\n\n',), "an error in its answer: oh"),
        ((b'event: error\ndata: {"message": "oh"}\n\n', DONE), "an error in its answer: oh"),
        (
            (TOKEN, b'data: {"object": "error", "message": "oh"}\n\n', DONE),
            "an error in its answer: oh",
        ),
        ((TOKEN, USED % 3, DONE), f"3 tokens came in 1 chunks, {UNTOLD}"),
        # A total with the last chunk does not say when the other two came.
        ((TOKEN, event(text="", count=3), DONE), f"3 tokens came in 1 chunks, {UNTOLD}"),
        # That its length ended it says that all came, and nothing says when.
        ((TOKEN, event(finish_reason="length"), DONE), f"3 tokens came in 2 chunks, {UNTOLD}"),
        ((TOKEN * 2, event(finish_reason="length"), DONE), OK),
        # Of each chunk instead of by now.
        ((event(count=1), event(count=1), DONE), "text came of which its usage counts no token"),
        ((TOKEN * 4, DONE), "it gave 4 tokens, and 3 were asked for"),
        ((event(count=1, prompt=5), DONE), "it read 5 prompt tokens, not the 7 sent"),
        ((TOKEN, event(text="", finish_reason="stop"), DONE), OK),
        *(
            (
                (TOKEN, event(text="", finish_reason=why), DONE),
                f"it broke its answer off (finish_reason: {why})",
            )
            for why in ("abort", "content_filter", "error")
        ),
    ],
)
def test_how_an_answer_ended(bodies: tuple[bytes, ...], status: str) -> None:
    assert read(*bodies).status == status


def test_how_the_connection_failed_is_said_first_and_tokens_before_it_are_kept() -> None:
    found = read(TOKEN, TOKEN[:7], status="the connection failed: oh")
    assert (found.status, found.arrivals_s) == ("the connection failed: oh", (0.002,))


@pytest.mark.parametrize(
    "said",
    [
        b'{"choices": [null]}',
        b'{"choices": ["a"]}',
        b'{"choices": 3}',
        b'{"choices": [{"text": [1]}]}',
        b'{"usage": 3}',
        b'{"usage": {"completion_tokens": "3"}}',
        b'{"usage": {"completion_tokens": 1000000000000}}',
        b'{"usage": {"prompt_tokens_details": 3}}',
        b'{"timings": {"predicted_n": -1}}',
        b'{"timings": {"prompt_ms": "3"}}',
    ],
)
def test_a_chunk_of_another_form_fails_its_request_and_no_other(said: bytes) -> None:
    found = read(TOKEN, b"data: %s\n\n" % said, DONE)
    assert found.status == f"a chunk of its answer is not OpenAI's: {said.decode()}"
    assert found.arrivals_s == (0.002,)


@pytest.mark.parametrize(
    "bodies",
    [
        [b"data:\n\n", TOKEN, b": still here\n\ndata: \n\n" + TOKEN, DONE],
        [b"retry: 9\n\n", b"event: token\nid: 1\n" + TOKEN, TOKEN, DONE],
        [b'data: {"choices": \n', b'data: [{"text": "a"}]}\n\n', TOKEN, DONE],
        [b"", TOKEN.rstrip() + b"\n", TOKEN.rstrip() + b"\n", DONE.rstrip()],
        [event(text=""), TOKEN, TOKEN, DONE],
        # Usage that is there only to be filled in at the end.
        [event(text="", count=0), TOKEN, TOKEN, event(text="", count=2), DONE],
        [event(text="", count=0), event(count=0), event(count=2), DONE],
        [
            event(text=""),
            TOKEN.replace(b"}]", b'}], "usage": {"completion_tokens": null}'),
            TOKEN,
            DONE,
        ],
    ],
)
def test_a_token_is_text_however_its_event_is_written(bodies: list[bytes]) -> None:
    for end in (b"\n", b"\r\n"):
        found = read(*(body.replace(b"\n", end) for body in bodies))
        assert (found.status, found.arrivals_s) == (OK, (0.003, 0.004))


def test_a_head_that_another_follows_is_none_of_the_body() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert list(body_of([(1, early), (2, CHUNKED + b"2\r\nab\r\n")])) == [(2, b"ab")]


def test_what_no_text_can_hold_is_said_in_another_way() -> None:
    found = read(b'data: {"error": {"message": "a \\ud800"}}\n\n', DONE)
    assert found.status == "an error in its answer: a \\ud800"
