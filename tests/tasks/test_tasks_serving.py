"""task=serving from end to end: a server that runs already, and llama.cpp's own."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from orchestrator.engines.port import Work
from orchestrator.errors import ConfigError
from orchestrator.measure import InputError, Recorder
from orchestrator.measure.registry import find_task
from orchestrator.tasks.serving.orders import Answer, Load
from orchestrator.tasks.serving.recorded import SATURATED, record, taken_from_others
from orchestrator.tasks.serving.window import STALL_S
from orchestrator.telemetry.recorded_series import read_histories
from testing.checks import check_of
from testing.endpoint import scripted
from testing.gguf import of_gguf
from testing.null_server import null_server
from testing.trial import make_identity

check = check_of("serving")
Measured = Callable[[dict[str, Any]], Any]


@pytest.fixture
def measured(recorder: tuple[Recorder, Any]) -> Measured:
    """Measure a trial here, and put this process back on its cores."""
    cores = os.sched_getaffinity(0)

    def run(identity: dict[str, Any]) -> Any:
        assert check(identity) is None
        to, events = recorder
        try:
            find_task("serving").run(identity, to)
        finally:
            os.sched_setaffinity(0, cores)
        return events

    return run


def served(url: str, load: str = "open", **options: Any) -> dict[str, Any]:
    given = {"prompt_tokens": 6, "new_tokens": 4, "warmup_s": 0.2, **options}
    return make_identity("source", task="serving", engine="endpoint", url=url, load=load, **given)


def all_answered(count: int, counted_by: str) -> dict[str, Any]:
    answered = {"due": count, "answered": count, "failed": {}}
    return {**answered, "shorter_than_asked": 0, "sent_again": 0, "tokens_counted_by": [counted_by]}


def test_a_load_on_a_server_that_runs(measured: Measured, tmp_path: Path) -> None:
    asked = {"rate": 50.0, "arrivals": "constant", "requests": 25}
    with scripted(new_prompt_s=0.03, token_s=0.01) as (url, script):
        events = measured(served(url, **asked))
    (file,) = tmp_path.rglob("requests.parquet")
    rows = pyarrow.parquet.read_table(file).to_pylist()
    due = [row for row in rows if row["measured"]]
    assert [row["due_s"] for row in due] == pytest.approx([0.2 + k / 50 for k in range(25)])
    tokens = [(row["due_s"], row["arrivals_s"]) for row in due]
    assert events.samples("ttft_s") == [at[0] - due_s for due_s, at in tokens]
    assert events.samples("e2e_s") == [at[-1] - due_s for due_s, at in tokens]
    assert events.samples("tpot_s") == [(at[-1] - at[0]) / 3 for _, at in tokens]
    gaps = [later - earlier for _, at in tokens for earlier, later in pairwise(at)]
    assert events.samples("itl_s") == [gap for gap in gaps if gap > 0]
    assert min(events.samples("ttft_s")) > 0.03
    assert min(events.samples("e2e_s")) > 0.06
    # The 26th would have been due half a second after the first.
    begin_s, end_s = 0.2, 0.7
    inside = [at for row in rows for at in row["arrivals_s"] if begin_s <= at < end_s]
    ended = [row for row in rows if row["ended_s"] is not None and row["arrivals_s"]]
    ended = [row for row in ended if begin_s <= row["arrivals_s"][-1] < end_s]
    assert events.value("output_tokens_per_s") == pytest.approx(len(inside) / 0.5)
    assert events.value("request_rate_per_s") == pytest.approx(len(ended) / 0.5)
    lags = [row["sent_s"] - row["due_s"] for row in due]
    in_time = [row["sent_s"] < end_s or lag <= STALL_S for row, lag in zip(due, lags, strict=True)]
    assert events.value("achieved_ratio") == sum(in_time) / 25
    assert events.value("lag_p99_s") == max(lags)
    assert events.value("in_flight") > 1
    assert events.value("error_ratio") == 0
    assert events.value("queue_growth") == 0
    # This server exports nothing.
    assert not list(tmp_path.rglob("server.parquet"))
    assert 0 <= events.value("generator_stalled_ratio") < 1
    assert 0 < events.value("generator_cpu_ratio") < 1
    assert events.fact("requests") == all_answered(25, "usage")
    edges = [e["t_ns"] for e in events if e["e"] == "phase" and e["name"] == "serving"]
    assert edges[1] - edges[0] == pytest.approx(0.5e9)
    assert len([each for each in script.seen if each.get("stream")]) > len(rows)


def test_a_server_that_cannot_keep_up_has_no_latency(measured: Measured) -> None:
    asked = {"rate": 200.0, "arrivals": "constant", "requests": 40, "new_tokens": 1}
    with null_server(0.02, slots=2) as server:
        events = measured(served(server.url, **asked))
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        assert events.samples(name) == []
        assert "cannot be sustained" in events.absent(name)
    assert events.value("queue_growth") > SATURATED
    assert events.value("request_rate_per_s") > 0
    assert events.value("in_flight") > 5
    assert events.fact("requests")["answered"] == 40


def test_answers_that_fail_are_counted_by_what_they_say(measured: Measured) -> None:
    with scripted(token_s=0.002) as (url, script):
        # Of what comes after the one request that is sent before the load.
        script.rejects = lambda asked: 6 <= sum("stream" in each for each in script.seen) < 11
        events = measured(served(url, "closed", concurrency=2, requests=20, warmup_s=0.0))
        assert events.fact("requests")["failed"] == {"HTTP 429: not now": 5}
    assert events.fact("requests")["answered"] == 15
    assert events.value("error_ratio") == 0.25
    assert len(events.samples("ttft_s")) == 15


on_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or len(os.sched_getaffinity(0)) < 2,
    reason="takes two cores and xllamacpp, which has no wheel everywhere",
)


@on_llama_cpp
def test_llama_cpp_serves_several_at_once(
    measured: Measured, tiny_gguf: Path, tmp_path: Path
) -> None:
    asked = {"prompt_tokens": 24, "new_tokens": 40, "slots": 3, "lengths": "lognormal"}
    asked |= {"spread": 0.3, "concurrency": 3, "requests": 12, "warmup_s": 0.1}
    model = of_gguf(tiny_gguf)
    events = measured(
        make_identity("source", task="serving", engine="llamacpp", model=model, **asked)
    )
    # Its HTTP server closes a connection after so many requests, and then one is sent again.
    assert {**events.fact("requests"), "sent_again": 0} == all_answered(12, "timings")
    assert len(events.samples("ttft_s")) == 12
    assert min(events.samples("ttft_s")) > 0
    assert 0 < events.value("in_flight") <= 2
    assert events.engaged("prompt tokens from a cache under load")["got"] == "0"
    assert not [e for e in events if e.get("name") == "achieved_ratio"]
    (file,) = tmp_path.rglob("server.parquet")
    assert {row["source"] for row in pyarrow.parquet.read_table(file).to_pylist()} == {"server"}
    assert read_histories(file.read_bytes()).get("server", "llamacpp:n_decode_total") is not None


@on_llama_cpp
def test_llama_cpp_reuses_of_a_conversation_what_it_has_read(
    measured: Measured, tiny_gguf: Path, tmp_path: Path
) -> None:
    # A slot for each conversation: a new one takes the one that was idle longest, whosever it is.
    asked = {"prompt_tokens": 16, "new_tokens": 4, "slots": 16, "concurrency": 2, "turns": 4}
    asked |= {"requests": 24, "warmup_s": 0.0}
    model = of_gguf(tiny_gguf)
    events = measured(
        make_identity("source", task="serving", engine="llamacpp", model=model, **asked)
    )
    (file,) = tmp_path.rglob("requests.parquet")
    rows = pyarrow.parquet.read_table(file).to_pylist()
    for row in [row for row in rows if row["status"] == "ok"]:
        before = row["turn"] - 1
        assert row["prompt_tokens"] == 16 + 20 * before
        # All of the prompt before, and as much of the drawn answer as the model gave by chance.
        assert 20 * before - 4 * bool(before) <= row["cached_tokens"] <= 20 * before
    assert events.engaged("prompt tokens from a cache under load")["got"] == "0"
    assert events.value("cached_tokens_ratio") > 0.5
    assert [turn for turn, _ in events.fact("ttft_by_turn")] == [1, 2, 3, 4]


@on_llama_cpp
def test_lines_of_a_file_are_prompts_of_their_own_lengths(
    measured: Measured, reads_bytes: Path, tmp_path: Path
) -> None:
    lines = {"ab": 3, "xyz " * 10: 7, "q": 5}
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "{p}", "new_tokens": {n}}}\n' for p, n in lines.items()))
    asked = {"prompt_tokens": 41, "concurrency": 1, "requests": 6, "warmup_s": 0.0}
    identity = make_identity(
        "source", task="serving", engine="llamacpp", model=of_gguf(reads_bytes), **asked
    )
    identity["task"]["prompt"] = str(file)
    measured(identity)
    (table,) = tmp_path.rglob("requests.parquet")
    rows = pyarrow.parquet.read_table(table).to_pylist()[:6]
    lengths = [(row["prompt_tokens"], row["new_tokens"]) for row in rows]
    # "ab" is one token, and this model puts none before a text.
    assert sorted(lengths[:3]) == [(1, 3), (1, 5), (40, 7)]
    assert lengths[3:] == lengths[:3]
    identity["task"]["prompt_tokens"] = 39
    with pytest.raises(InputError, match=r"line 2 has 40 tokens, more than task.prompt_tokens=39"):
        measured(identity)


def test_conversations_on_an_endpoint_have_a_cache_each(measured: Measured) -> None:
    asked = {"concurrency": 2, "requests": 6, "turns": 3, "warmup_s": 0.0}
    with scripted(token_s=0.002) as (url, script):
        measured(served(url, "closed", **asked))
    sent = [each for each in script.seen if each.get("stream") and "cache_salt" in each]
    talks: dict[str, list[Any]] = {}
    for each in sent:
        talks.setdefault(each["cache_salt"], []).append(each)
    whole = [talk for talk in talks.values() if len(talk) == 3]
    assert len(whole) >= 2
    for first, second, third in whole:
        assert [each["cache_prompt"] for each in (first, second, third)] == [False, True, True]
        assert second["prompt"][: len(first["prompt"])] == first["prompt"]
        assert third["prompt"][: len(second["prompt"])] == second["prompt"]


def test_a_prompt_that_another_conversation_left_is_a_mismatch(tmp_path: Path) -> None:
    def answer(conversation: int, turn: int, cached: int) -> Answer:
        arrivals = (0.1, 0.2)
        known = {"prompt_tokens": 10 * turn, "cached_tokens": cached}
        at = {"conversation": conversation, "turn": turn}
        return Answer(0.0, 0.0, 0.3, arrivals, "ok", True, 2, **known, **at)

    assert taken_from_others([answer(0, 1, 0), answer(0, 2, 12), answer(1, 1, 3)]) == [0, 0, 3]
    assert taken_from_others([answer(0, 1, 0), answer(0, 2, 13)]) == [0, 1]


@pytest.mark.parametrize("work", [Work(reuse=True), Work(turns=2)])
def test_prompts_that_a_cache_may_hold_are_sent_once(
    work: Work, recorder: tuple[Recorder, Any]
) -> None:
    def load(*numbers: int) -> Load:
        answers = (Answer(k, k, k + 0.5, (k + 0.4,), "ok", True, 1) for k in range(3))
        numbered = zip(answers, numbers, strict=True)
        return Load(0, (0, 3), tuple(replace(a, conversation=n) for a, n in numbered), (), 0.1)

    to, _ = recorder
    record(load(0, 1, 2), to, work, open_loop=False)
    with pytest.raises(InputError, match=r"load.requests: 2 prompts were not enough"):
        record(load(0, 1, 0), to, work, open_loop=False)
    record(load(0, 1, 0), to, Work(), open_loop=False)


def test_nothing_that_is_answered_is_an_error(measured: Measured) -> None:
    with scripted() as (url, script):
        # All but the one request that is sent before the load.
        script.rejects = lambda asked: sum("stream" in each for each in script.seen) > 1
        asked = served(url, "closed", concurrency=1, requests=3, warmup_s=0.0)
        with pytest.raises(InputError, match="none of 3 requests was answered: HTTP 429: not now"):
            measured(asked)


TRACED = {"prompt_tokens": 128, "new_tokens": 32, "warmup_s": 0.0}


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"lengths": "normal"}, "load.spread"),
        ({"spread": 0.5}, "load.spread"),
        ({"arrivals": "gamma"}, "load.burstiness"),
        ({"burstiness": 2.0}, "load.burstiness"),
        ({"slots": 2}, "task.slots"),
        ({"load": "trace"}, "load.trace"),
        ({"think_s": 1.0}, "load.think_s"),
        ({"load": "trace", "trace": "x"} | TRACED | {"turns": 2}, "load.turns"),
        ({"load": "trace", "trace": "x"}, "task.prompt_tokens"),
        ({"load": "trace", "trace": "x"} | TRACED, "load.trace=x: no such file"),
        ({"prompt": "x.jsonl"}, "task.prompt=x.jsonl: no such text"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(served("http://127.0.0.1:1/v1", **options))
    assert where in str(caught.value)
