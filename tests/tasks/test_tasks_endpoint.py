"""engine=endpoint: a real server of llama.cpp's, and scripted ones that answer badly."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import Outcome, Slot
from orchestrator.conditions import UNKNOWN, difference
from orchestrator.engines import registry as engines
from orchestrator.engines.completions import Completion, fault_of, read_completion
from orchestrator.engines.endpoint import client
from orchestrator.engines.port import Work
from orchestrator.engines.tokenizer import Tokenizer
from orchestrator.errors import ConfigError, Mismatch
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import InputError, Recorder
from orchestrator.schedule.surroundings import Surroundings
from testing.checks import check_of
from testing.commands import orchestrator
from testing.endpoint import scripted
from testing.near import near
from testing.trial import make_identity, run_attempt

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
check = check_of("inference")


def asked(url: str, **options: Any) -> dict[str, Any]:
    work = {"prompt_tokens": 8, "new_tokens": 6, **options}
    return make_identity("source", engine="endpoint", url=url, **work)


MS = 1_000_000
PLAIN: dict[str, Any] = {"choices": [{"text": "x"}]}


def timed(count: int, own_ms: float = 0.0) -> dict[str, Any]:
    timings = {"prompt_ms": 100.0, "predicted_n": count, "predicted_ms": own_ms, "cache_n": 0}
    return {**PLAIN, "timings": timings}


def used(new: int) -> dict[str, Any]:
    return {"usage": {"completion_tokens": new, "prompt_tokens": 4}}


def test_tokens_are_counted_by_timings_by_usage_or_by_chunks() -> None:
    by_timings = read_completion(
        0, [(10 * MS, timed(1)), (20 * MS, timed(3, 9.0)), (21 * MS, timed(3, 9.0) | used(3))]
    )
    assert by_timings.arrivals_ns == (10 * MS, 20 * MS, 20 * MS)
    assert by_timings.counted_by == "timings"
    assert by_timings.own is not None
    assert by_timings.own.decode_s == pytest.approx(0.009)
    assert by_timings.cached_tokens == 0
    last = {"choices": [], **used(3)}
    by_usage = read_completion(
        0, [(10 * MS, PLAIN | used(1)), (20 * MS, PLAIN | used(3)), (21 * MS, last)]
    )
    assert by_usage.arrivals_ns == by_timings.arrivals_ns
    assert by_usage.counted_by == "usage"
    by_chunks = read_completion(0, [(10 * MS, PLAIN), (20 * MS, PLAIN), (21 * MS, last)])
    assert by_chunks.arrivals_ns == (10 * MS, 20 * MS)
    assert (by_chunks.counted_by, by_chunks.new_tokens) == ("chunks", 3)
    assert by_chunks.own is None


def test_the_token_that_ends_an_answer_has_no_text_and_counts_where_the_server_counts_it() -> None:
    def ends(reason: str) -> dict[str, Any]:
        return {"choices": [{"text": "", "finish_reason": reason}]}

    def answer(reason: str, counted: int) -> Completion:
        last = (40 * MS, {"choices": [], **used(counted)})
        chunks = [(10 * MS, PLAIN), (20 * MS, PLAIN), (30 * MS, ends(reason)), last]
        return read_completion(0, chunks)

    assert answer("stop", 3).arrivals_ns == (10 * MS, 20 * MS, 30 * MS)
    assert answer("stop", 2).arrivals_ns == (10 * MS, 20 * MS)
    assert fault_of(answer("stop", 3), 4, 8) is None
    # Which chunk of these has two tokens is not known.
    for unknown in (answer("stop", 4), answer("length", 3)):
        assert "tokens came in 2 chunks" in str(fault_of(unknown, 4, 8))


with_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp has no wheel here"
)


def llama_server(file: Path) -> Any:
    """llama.cpp's own server of ``file``; it ends with the last reference to it."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 128, 1, False
    parameters.fit_params = False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(parameters)


@with_llama_cpp
def test_a_server_of_llama_cpp_answers_as_the_engine_does(
    identity: Identity, run: Run, reads_bytes: Path
) -> None:
    server = llama_server(reads_bytes)
    model = {"source": "gguf", "path": str(reads_bytes), "architecture": None}
    # So many that not all are there before the first read, however small the model.
    work = {"prompt_tokens": 24, "new_tokens": 80, "quality_tokens": 16, "prompt": "text"}
    there = run(asked(f"{server.listening_address}/v1", model=model, **work))
    here = run(identity("source", engine="llamacpp", model=model, **work))
    del server
    assert there.fact("prompt") == here.fact("prompt")
    assert there.fact("output_digests") == here.fact("output_digests")
    assert there.fact("quality_tokens_digest") == here.fact("quality_tokens_digest")
    assert there.value("perplexity") == pytest.approx(here.value("perplexity"), rel=1e-3)
    assert there.fact("tokens_counted_by") == "timings"
    assert there.fact("proofs")["cache"] == "proven"
    assert there.engaged("no prefix reuse")["got"] == "0 tokens of the last from a cache"
    assert len(there.samples("ttft_s")) == 3
    # Theirs lies within ours: the request comes on top.
    assert all(ratio > 1 - 1e-3 for ratio in there.samples("prefill_over_own_timing"))
    for name in ("weights_bytes", "peak_memory_over_weights_bytes", "load_s"):
        assert "the server" in there.absent(name)


@with_llama_cpp
def test_a_server_s_text_goes_on_as_the_engine_s_and_ends_where_it_is_to(
    writes_ascii: Path, recorder: tuple[Recorder, Any]
) -> None:
    server = llama_server(writes_ascii)

    def texts(identity: dict[str, Any]) -> list[str]:
        work = Work(read_tokens=64)
        session = engines.load(engines.prepare(identity, recorder[0], work), work, recorder[0])
        tokenizer = session.tokenizer()
        assert not isinstance(tokenizer, str)
        ids = tokenizer.encode("a b c")
        # The first of them lies across two tokens.
        ends: list[list[str]] = [[], ["4;\x0c"], ["never", "", *"yxz", "2"]]
        found = [session.continuation(ids, most, e, tokenizer) for e in ends for most in (1, 24)]
        session.close()
        return found

    model = {"source": "gguf", "path": str(writes_ascii), "architecture": None}
    there = texts(asked(f"{server.listening_address}/v1", model=model))
    del server
    assert there == texts(make_identity("source", engine="llamacpp", model=model))
    assert there == ["\x1a", "\x1a2w74;\x0c\x01", "\x1a", "\x1a2w7", "\x1a", "\x1a"]


def test_a_server_is_told_no_more_ends_than_openai_s_takes(
    recorder: tuple[Recorder, Any],
) -> None:
    with scripted() as (url, script):
        work = Work(read_tokens=64)
        session = engines.load(engines.prepare(asked(url), recorder[0], work), work, recorder[0])
        assert session.continuation([1, 2], 9, ["", *"abcdef", "x"], Tokenizer(list)) == ""
        assert session.continuation([1, 2], 9, [], Tokenizer(list)) == "x"
    first, last = script.seen[-2:]
    assert first == last | {"stop": [*"abcd"]}
    assert (last["max_tokens"], last["temperature"], "ignore_eos" in last) == (9, 0.0, False)


def test_a_server_like_vllm_gives_lengths_counts_and_log_probabilities(run: Run) -> None:
    with scripted(tokens_a_chunk=2) as (url, script):
        events = run(asked(url, quality_tokens=16, prompt="text"))
    # Tokens that came together have no interval.
    assert events.samples("itl_s") == []
    assert len(events.samples("tpot_s")) == 3
    assert events.fact("tokens_counted_by") == "usage"
    assert events.fact("endpoint")["log-probabilities"] == "prompt"
    text = bytes(script.seen[-1]["prompt"])
    in_order = sum(b == a + 1 for a, b in pairwise(text))
    rest = len(text) - 1 - in_order
    perplexity = math.exp((in_order * math.log(2) + rest * math.log(510)) / (len(text) - 1))
    assert events.value("perplexity") == pytest.approx(perplexity)
    request = next(r for r in script.seen if r.get("stream"))
    assert (request["min_tokens"], request["ignore_eos"]) == (request["max_tokens"], True)
    salts = [r["cache_salt"] for r in script.seen]
    assert len(set(salts)) == len(salts)


def test_a_server_that_knows_openai_s_options_only(run: Run) -> None:
    plain = {"takes_options": False, "counts": False, "tokenizes": False}
    with scripted(**plain) as (url, _):
        events = run(asked(url, quality_tokens=16))
    assert events.fact("tokens_counted_by") == "chunks"
    assert events.fact("endpoint")["takes ignore_eos and min_tokens"] is False
    assert "gives no log-probabilities" in events.absent("perplexity")
    assert len(events.samples("itl_s")) == 3 * 5


def test_a_prompt_that_comes_out_of_a_cache_is_found_by_its_time(run: Run) -> None:
    with (
        scripted(new_prompt_s=0.25) as (url, _),
        pytest.raises(Mismatch, match="no prefix reuse"),
    ):
        run(asked(url))


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ({"key": "sk-1234567"}, {}, r"401 Unauthorized: no such key.*engine\.key_variable=NAME"),
        ({"status": 429, "body": '{"error": "slow down"}'}, {}, "429 Too .*: slow down.*retry"),
        ({"status": 500, "body": "<h1>broken</h1>\nx"}, {}, "500 Internal .*: <h1>broken</h1> x"),
        ({"status": 404, "body": '{"detail": "gone"}'}, {}, r"404 Not Found: gone\. engine\.url"),
        ({}, {"model_name": "other"}, "engine.model=other: the server has no such model.*toy"),
        ({"models": ("a", "b")}, {}, "not exactly one model.*It lists a, b"),
        ({"models": None}, {}, "not exactly one model.*lists none"),
        ({"stops_after": 4}, {}, r"gave 4 tokens, not the 6 asked for \(finish_reason: stop\)"),
        ({"tokens_a_chunk": 3, "counts": False}, {}, "6 tokens came in 2 chunks"),
        ({"extra_prompt_tokens": 1}, {}, "read 9 prompt tokens, not the 8 sent"),
        ({"tokens_a_chunk": 6}, {}, "all 6 tokens arrived at once, 3 times: it, or a proxy"),
        ({"cut_after": 2}, {}, r"closed the connection in the middle of an answer \(2 chunks\)"),
        ({"error_after": 2}, {}, "the model fell over"),
        ({"whole": True}, {}, r"its answer is no stream: \{\"choices"),
        ({"hang_after": 2}, {}, "silent for 0.3 s. Is it running"),
        ({"status": 200, "tokenizes": False}, {"model": {"source": "packaged"}}, "no /tokenize"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    script: dict[str, Any],
    options: dict[str, Any],
    said: str,
) -> None:
    if "hang_after" in script:
        monkeypatch.setattr(client, "SILENT_S", 0.3)
    name = options.pop("model_name", None)
    with scripted(**script) as (url, _):
        identity = asked(url, **options)
        identity["engine"]["model"] = name
        with pytest.raises(InputError, match=said) as caught:
            run(identity)
    assert "\n" not in str(caught.value)


def test_no_server_at_all(run: Run) -> None:
    with scripted() as (url, _):
        pass
    with pytest.raises(InputError, match=f"{url}: the connection failed: .*refused"):
        run(asked(url))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": None}, "engine.url: is not given"),
        ({"url": "host:8000"}, "no address of a server"),
        ({"url": "http://me:hunter2@host/v1"}, "no address of a server, without password"),
        ({"url": "http://host/v1\n"}, "no address of a server"),
        ({"url": "http://host/v1?key=hunter2"}, "no address of a server, without password"),
        ({"key_variable": "hunter2"}, "engine.key_variable: is not the name of a variable"),
        ({"key_variable": "sk-hunter2_KEY"}, "engine.key_variable: is not the name"),
    ],
)
def test_planning_finds_what_cannot_be_and_shows_no_secret(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check(asked(**{"url": "http://host/v1", **options}))
    assert "hunter2" not in str(caught.value)


def test_what_it_cannot_do_is_infeasible() -> None:
    assert check(asked("http://host:8000/v1", key_variable="MY_API_KEY")) is None
    assert "one sequence" in str(check(asked("http://host/v1", batch_size=2)))
    other = make_identity("bf16", engine="endpoint", url="http://host/v1")
    assert check(other) == "endpoint has no bf16; it has source"


def test_a_key_reaches_the_server_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_API_KEY", "sk-swordfish")
    monkeypatch.setenv("WRONG_API_KEY", "sk-herring")
    with scripted(key="sk-swordfish", echoes_key=True) as (url, _), Isolation() as isolation:
        good = run_attempt(isolation, asked(url, key_variable="TOY_API_KEY"))
        wrong = run_attempt(isolation, asked(url, key_variable="WRONG_API_KEY"))
        unset = run_attempt(isolation, asked(url, key_variable="UNSET_API_KEY"))
    assert good.outcome is Outcome.OK, good.reason
    assert "no such key: Bearer ********" in str(wrong.reason)
    assert "UNSET_API_KEY is not set" in str(unset.reason)
    for report in (good, wrong, unset):
        text = f"{report.to_json()} {report.artifacts}"
        assert "swordfish" not in text
        assert "herring" not in text


@pytest.mark.parametrize("key", ["sk-herring\n", "sk-her\nring", "sk herring", "sk-hèrring"])
def test_a_key_that_no_header_can_carry_is_said_in_a_line_without_it(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_API_KEY", key)
    with pytest.raises(InputError, match="TOY_API_KEY holds no key: it has a line break") as caught:
        client.key_of("TOY_API_KEY")
    assert "ring" not in str(caught.value)


def test_a_host_that_no_name_can_be_is_said_in_a_line() -> None:
    with pytest.raises(InputError, match=r"http://a\.\.b/v1: the connection failed"):
        client.Endpoint("http://a..b/v1", None, lambda: 0).models()


def test_its_machine_is_not_known() -> None:
    found = Surroundings([]).of(asked("http://host/v1"), Slot("n", "h", (0,)))
    assert found.ids["machine"] == UNKNOWN
    assert UNKNOWN not in (found.ids["software"], found.ids["content"])
    assert difference(found, found) == "machine: not known"


@pytest.mark.long
def test_it_is_always_measured_again_unless_reuse_is_by_hash(tmp_path: Path) -> None:
    with scripted(token_s=0.05) as (url, _), near():
        words = (
            *("engine=endpoint", f"engine.url={url}", "quant=source", "model=random_tiny"),
            *("task.prompt_tokens=8", "task.new_tokens=4", "device=cpu", "verdict=off"),
        )
        for _ in range(2):
            done = orchestrator(tmp_path, *words, "ceilings=off", "--json")
            assert done.json["outcomes"] == {"ok": 1}, done.err
        planned = orchestrator(tmp_path, "plan", *words, "--json").json["trials"][0]
        assert (planned["state"], planned["reason"]) == ("stale", "machine: not known")
        planned = orchestrator(tmp_path, "plan", *words, "reuse=hash", "--json").json["trials"][0]
        assert planned["state"] == "cached"
