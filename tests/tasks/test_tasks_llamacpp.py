"""engine=llamacpp: times read from a stream, predictions, a tiny model run for real."""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines import port
from orchestrator.engines import registry as engines
from orchestrator.engines.llamacpp import engine
from orchestrator.engines.llamacpp.options import gpu_layers, room_tokens
from orchestrator.engines.llamacpp.server import Completion, read_completions
from orchestrator.engines.port import Generation, Work
from orchestrator.engines.registry import expect
from orchestrator.engines.texts import random_prompt
from orchestrator.engines.transformers import convert
from orchestrator.errors import ConfigError
from orchestrator.measure import InputError, Mismatch
from orchestrator.tasks.inference import OWN_TIMING_TOLERANCE
from testing.checks import check_of
from testing.gguf import of_gguf

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
check = check_of("inference")
needs_llamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp has no wheel here"
)


def chunk(count: int, own_ms: float = 0.0, **more: Any) -> dict[str, Any]:
    return {
        "choices": [{"text": "x"}],
        "timings": {"prompt_ms": 100.0, "predicted_n": count, "predicted_ms": own_ms},
        **more,
    }


def usage(new: int, prompt: int = 4, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    return {
        "usage": {
            "completion_tokens": new,
            "prompt_tokens": prompt,
            "prompt_tokens_details": details,
        }
    }


MS = 1_000_000


def generation(answer: Completion) -> Generation:
    return Generation(tuple((at - answer.begin_ns) / 1e9 for at in answer.arrivals_ns), "")


def test_times_come_from_chunks_that_brought_a_token() -> None:
    chunks = [
        (101 * MS, chunk(1)),
        (111 * MS, chunk(2, 10.0)),
        (123 * MS, chunk(3, 22.0)),
        (124 * MS, chunk(3, 22.0, **usage(3))),
    ]
    (answer,) = read_completions(0, chunks, 1)
    made = generation(answer)
    assert made.ttft_s == pytest.approx(0.101)
    assert made.intervals_s == pytest.approx((0.010, 0.012))
    assert made.gaps_s == pytest.approx((0.010, 0.012))
    assert made.decode_s == pytest.approx(0.022)
    assert answer.own_decode_s == pytest.approx(0.022)
    assert answer.own_prefill_s == pytest.approx(0.100)
    assert (answer.prompt_tokens, answer.new_tokens, answer.cached_tokens) == (4, 3, 0)
    assert made.merged_tokens == 0


def test_tokens_that_came_together_make_no_interval() -> None:
    chunks = [
        (100 * MS, chunk(1)),
        (130 * MS, chunk(3, 30.0)),
        (140 * MS, chunk(4, 40.0)),
        # The last token was held back: it comes with the closing chunk.
        (150 * MS, chunk(5, 50.0, **usage(5))),
    ]
    made = generation(*read_completions(0, chunks, 1))
    assert made.intervals_s == pytest.approx((0.010, 0.010))
    assert made.gaps_s == pytest.approx((0.030, 0.0, 0.010, 0.010))
    assert made.decode_s == pytest.approx(0.050)
    assert made.merged_tokens == 1


def test_a_token_of_the_batch_is_there_when_the_last_sequence_has_it() -> None:
    def of_row(index: int, count: int, **more: Any) -> dict[str, Any]:
        return chunk(count, 10.0 * count, **more) | {"choices": [{"text": "x", "index": index}]}

    chunks = [
        (1 * MS, None),
        (100 * MS, of_row(1, 1)),
        (101 * MS, of_row(0, 1)),
        (110 * MS, of_row(0, 2, **usage(2))),
        (112 * MS, of_row(1, 2, **usage(2))),
    ]
    found = read_completions(0, chunks, 2)
    assert [each.arrivals_ns for each in found] == [(101 * MS, 110 * MS), (100 * MS, 112 * MS)]


def test_what_a_draft_got_right_came_together() -> None:
    chunks = [
        (100 * MS, chunk(1)),
        (130 * MS, chunk(2, 30.0)),
        (131 * MS, chunk(3, 30.0)),
        (132 * MS, chunk(4, 30.0)),
        (140 * MS, chunk(5, 40.0)),
        (141 * MS, chunk(5, 40.0, **usage(5))),
    ]
    chunks[-1][1]["timings"] |= {"draft_n": 6, "draft_n_accepted": 2}
    (answer,) = read_completions(0, chunks, 1)
    made = generation(answer)
    assert made.gaps_s == pytest.approx((0.030, 0.0, 0.0, 0.010))
    assert made.merged_tokens == 2
    assert (answer.drafted, answer.accepted) == (6, 2)


def test_refusals_and_broken_streams_are_said() -> None:
    with pytest.raises(InputError, match="exceeds the context"):
        read_completions(0, [(1, {"error": {"message": "exceeds the context"}})], 1)
    with pytest.raises(Mismatch, match="ended without"):
        read_completions(0, [(1, chunk(1))], 1)


@pytest.mark.parametrize(
    ("asked", "layers"),
    [("0", 0), ("7", 7), ("99", 31), ("all", 31), ("25%", 8), ("50%", 16), ("0%", 0), ("100%", 31)],
)
def test_gpu_layers(asked: str, layers: int) -> None:
    assert gpu_layers(asked, 31) == layers


@pytest.mark.parametrize("asked", ["half", "-1", "101%", "", "2.5"])
def test_gpu_layers_that_cannot_be_meant(asked: str) -> None:
    with pytest.raises(ConfigError, match="number of layers"):
        gpu_layers(asked, 31)


def test_prompts_are_seeded_and_of_ordinary_tokens() -> None:
    ids = (3, 5, 9)
    prompt = random_prompt(ids, 1, 2, 50)
    assert [len(row) for row in prompt] == [50, 50]
    assert set(prompt[0]) == set(ids)
    assert prompt == random_prompt(ids, 1, 2, 50)
    assert prompt != random_prompt(ids, 2, 2, 50)


def test_a_token_takes_at_least_as_long_as_reading_the_weights(identity: Identity) -> None:
    from orchestrator.model.measured_device import Measured

    bytes_per_s, launch_s = 1e9, 1.0
    fast = ((1e6, 1.0, 1e-9), (1e6, 512.0, 1e-9))
    timings = {f"product.far.{dtype}": fast for dtype in ("float32", "bfloat16", "int8")}
    here = Measured("here", timings, ((1e6, bytes_per_s),), ((1e6, bytes_per_s),), launch_s)
    packaged = {"source": "packaged", "id": "smollm2_135m", "architecture": None}
    for name in ("bf16", "q4_0"):
        asked = identity(name, engine="llamacpp", model=packaged)
        expected = expect(asked, None)
        found = expected.times_s(here, measured=True)["tpot_s"]
        # The cache and activations come on top; a launch from Python does not.
        read_s = expected.sizes_bytes["weights_bytes"] / bytes_per_s
        assert read_s * 0.99 < found.time_s < 1.2 * read_s


def test_what_cannot_be_predicted_is_not(identity: Identity, tiny_gguf: Path) -> None:
    # Planning reads no file.
    assert expect(identity("source", engine="llamacpp", model=of_gguf(tiny_gguf)), None) is None
    packaged = {"source": "packaged", "id": "smollm2_135m", "architecture": None}
    half = identity("source", engine="llamacpp", model=packaged, gpu_layers="50%")
    assert expect(half, None).made_steps() == {}
    whole = identity("source", engine="llamacpp", model=packaged, gpu_layers="all")
    assert set(expect(whole, None).made_steps()) == {"ttft_s", "tpot_s"}


def test_the_context_has_room_for_what_is_run() -> None:
    assert room_tokens(0, Work(tokens=260)) == 512
    assert room_tokens(300, Work(tokens=260)) == 300
    # The text is cut into windows; begin-of-text and a generated token stand beside one.
    assert Work(tokens=260, scored_tokens=300).room_tokens() == 302
    assert Work(tokens=260, scored_tokens=6000).room_tokens() == 514
    assert Work(tokens=260, scored_tokens=6000).room_tokens(400) == 400


@needs_llamacpp
def test_without_a_reference_the_reason_is_said(
    identity: Identity, run: Run, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*of: Any, **how: Any) -> Path:
        raise InputError("no space left for the cache")

    monkeypatch.setattr(convert, "publish", full)
    asked = identity(
        "source",
        engine="llamacpp",
        model=of_gguf(tiny_gguf),
        prompt_tokens=8,
        new_tokens=2,
        quality_tokens=8,
    )
    events = run(asked)
    assert events.value("perplexity") > 1
    reason = events.absent("kl_to_reference")
    assert "no float32 reference of these weights: no space left" in reason


@needs_llamacpp
def test_a_prompt_longer_than_the_file_s_context_is_refused(
    identity: Identity, run: Run, tiny_gguf: Path
) -> None:
    with pytest.raises(InputError, match=r"= 140, more than the model's context of 128.*Shorten"):
        run(
            identity(
                "source",
                engine="llamacpp",
                model=of_gguf(tiny_gguf),
                prompt_tokens=130,
                new_tokens=10,
            )
        )


class Spoken:
    """A server that gives the same distribution whatever it is asked."""

    def __init__(self, probabilities: list[float]) -> None:
        self.found = sorted(
            ((token, math.log(p)) for token, p in enumerate(probabilities)), key=lambda t: -t[1]
        )
        self.asked: list[int] = []
        self.withheld: int | None = 1

    def next_logprobs(
        self, prompt: Any, count: int, *, chosen: int | None
    ) -> list[tuple[int, float]]:
        self.asked.append(count)
        if chosen == self.withheld:
            return []
        return self.found[:count] + [each for each in self.found[count:] if each[0] == chosen]


def test_each_token_is_predicted_from_all_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TOP", 2)
    server: Any = Spoken([0.5, 0.25, 0.125, 0.125])
    session = engine.LlamaCppSession.__new__(engine.LlamaCppSession)
    session._server, session.vocabulary = server, 4
    found = session.next_logprobs([9, 0, 1], [0, 1, 3])
    assert found.targets == pytest.approx([math.log(p) for p in (0.5, 0.25, 0.125)])
    # The second is a part of a character, of which it tells only among all others.
    assert server.asked == [2, 2, 4, 2]
    assert found.ids is not None
    assert found.ids.tolist() == [[0, 1]] * 3
    assert found.top1.tolist() == [0, 0, 0]
    assert session.likelihood([9, 0], [0, 0]) == (pytest.approx(2 * math.log(0.5)), True)
    assert session.likelihood([9, 0], [0, 1])[1] is False
    with pytest.raises(Mismatch, match="token 7"):
        session.next_logprobs([0], [7])


@needs_llamacpp
def test_an_unlikely_token_has_the_probability_it_has_in_the_whole_vocabulary(
    identity: Identity, tiny_gguf: Path, recorder: Any
) -> None:
    asked = identity("source", engine="llamacpp", model=of_gguf(tiny_gguf))
    work = Work(tokens=8)
    session: Any = engines.load(engines.prepare(asked, recorder[0], work), work, recorder[0])
    whole = dict(session._server.next_logprobs([5, 6, 7], session.vocabulary))
    least = min(whole, key=lambda token: whole[token])
    first, _, (token, logprob) = session._server.next_logprobs([5, 6, 7], 2, chosen=least)
    assert (token, logprob) == (least, pytest.approx(whole[least], abs=1e-4))
    assert first[0] == max(whole, key=lambda token: whole[token])
    session.close()


@needs_llamacpp
def test_bad_input_is_refused_while_planning(identity: Identity, tiny_gguf: Path) -> None:
    def asked(quant: str = "source", model: dict[str, Any] | None = None, **options: Any) -> Any:
        return identity(quant, engine="llamacpp", model=model or of_gguf(tiny_gguf), **options)

    assert check(asked()) is None
    assert "llamacpp has no nf4; it has fp32, bf16" in (check(asked("nf4")) or "")
    random = {"source": "random", "architecture": {"model_type": "llama"}}
    assert "runs GGUF files" in (check(asked(model=random)) or "")
    for layers in ("25%", "all", "3"):
        assert "needs a GPU" in (check(asked(gpu_layers=layers)) or "")
    assert "needs flash attention" in (
        check(asked(flash_attention="off", cache_type_v="q8_0")) or ""
    )
    assert "as f16: use engine.flash_attention=off" in (check(asked(cache_type_k="f32")) or "")
    assert check(asked(cache_type_k="f32", flash_attention="off")) is None
    assert "more than" in (check(asked(context_tokens=256, prompt_tokens=250)) or "")
    # llama.cpp would take another number than this.
    assert "use engine.context_tokens=512" in (check(asked(context_tokens=300)) or "")
    assert check(asked(context_tokens=512, prompt_tokens=8)) is None


def test_a_missing_package_says_what_to_install(
    identity: Identity, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "_is_installed", lambda name: name != "xllamacpp")
    with pytest.raises(ConfigError) as caught:
        check(identity("source", engine="llamacpp", model=of_gguf(tiny_gguf)))
    assert str(caught.value).endswith("make setup")


@needs_llamacpp
def test_tiny_model_is_measured_for_real(identity: Identity, run: Run, tiny_gguf: Path) -> None:
    new = 12
    asked = identity(
        "q4_0",
        engine="llamacpp",
        model=of_gguf(tiny_gguf),
        prompt_tokens=24,
        new_tokens=new,
        quality_tokens=16,
    )
    events = run(asked)
    # Nothing of it was in the cache: what is made once has phases of its own.
    before = ["prepare", "convert", "load", "first_call", "warmup"]
    after = ["prove", "quality", "reference"]
    assert events.phases() == [*before, *["prefill", "decode"] * 3, *after]
    assert events.engaged("format")["got"] == "Q4_0"
    assert events.engaged("prompt tokens")["got"] == "24"
    assert events.value("load_s") > 0
    assert events.value("first_call_s") > 0
    assert 4 < events.value("weights_bits_per_parameter") < 9
    rates, means = events.samples("decode_tokens_per_s"), events.samples("tpot_s")
    assert len(rates) == len(means) == len(events.samples("ttft_s")) == 3
    assert rates == pytest.approx([1 / mean for mean in means])
    # Every token has an interval, or is counted as one that came with another.
    together = events.fact("tokens_that_came_together")
    assert len(events.samples("itl_s")) >= 3 * (new - 1) - 2 * together
    # Chunks of so fast a model wait for each other on a busy machine, so the two parts shift; the
    # whole began before llama.cpp's own reading of it and ended after.
    for ttft, tpot, e2e, prefill, decode in zip(
        events.samples("ttft_s"),
        means,
        events.samples("e2e_s"),
        events.samples("prefill_over_own_timing"),
        events.samples("decode_over_own_timing"),
        strict=True,
    ):
        own_s = ttft / prefill + (new - 1) * tpot / decode
        assert e2e > own_s - 1e-5  # theirs are in whole microseconds
    assert set(events.fact("own_timings_agree")) == {"tolerance", "prefill", "decode"}
    assert len(events.fact("output_digests")) == 1
    # Random weights tell nothing of a text; four bits of them tell other nothings than sixteen.
    assert 100 < events.value("perplexity") < 600
    assert events.value("reference_perplexity") == pytest.approx(events.value("perplexity"), 0.2)
    assert 0 < events.value("kl_top_to_reference") < 0.1
    assert 0 <= events.value("top1_agreement") <= 1
    expected = expect(asked, events.fact("model_config"))
    assert expected.sizes_bytes["weights_bytes"] == events.value("weights_bytes")
    assert set(expected.made_steps()) == {"ttft_s", "tpot_s"}


@needs_llamacpp
def test_two_engines_say_the_same_of_the_same_weights(
    identity: Identity, run: Run, reads_bytes: Path, cache: Path
) -> None:
    work = {"model": of_gguf(reads_bytes), "prompt_tokens": 8, "new_tokens": 2, "quality_tokens": 8}
    cache_type = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attention": "off"}
    theirs = run(identity("fp32", engine="llamacpp", **cache_type, **work))
    # Single precision on both: what is left is the order of sums.
    assert theirs.value("kl_top_to_reference") < 1e-6
    assert theirs.value("top1_agreement") == 1
    ours = run(identity("fp32", **work))
    assert theirs.fact("quality_windows") == ours.fact("quality_windows")
    assert theirs.value("perplexity") == pytest.approx(ours.value("perplexity"), rel=1e-4)
    assert "reference" not in ours.phases()
    assert len(list((cache / "references").iterdir())) == 1


@needs_llamacpp
@pytest.mark.long
@pytest.mark.xdist_group("packaged_model")
@pytest.mark.usefixtures("machine_cache")
def test_packaged_model_has_the_quality_of_its_format(identity: Identity, run: Run) -> None:
    asked = identity(
        "q4_1",
        engine="llamacpp",
        model={"source": "packaged", "id": "smollm2_135m", "architecture": None},
        prompt_tokens=128,
        new_tokens=16,
        quality_tokens=32,
    )
    events = run(asked)
    assert events.fact("gguf")["tensors"]["Q4_1"] == 210
    # Far better than chance (49,152), far from certain.
    assert 2 < events.value("perplexity") < 200
    assert 4 < events.value("weights_bits_per_parameter") < 7
    # Four bits lose little against the same weights in sixteen: what differs is the arithmetic.
    assert events.value("reference_perplexity") == pytest.approx(events.value("perplexity"), 0.05)
    assert 0 < events.value("kl_top_to_reference") < 0.05
    assert events.value("top1_agreement") > 0.8
    expected = expect(asked, events.fact("model_config"))
    assert expected.sizes_bytes["weights_bytes"] == events.value("weights_bytes")
    # llama.cpp's own reading: the same thing in the same unit. Whether they agree to the stated
    # tolerance is said of each attempt, for it is the machine's business.
    for phase in ("prefill", "decode"):
        ratios = events.samples(f"{phase}_over_own_timing")
        assert all(0.5 < ratio < 2 for ratio in ratios), phase
        agrees = abs(statistics.median(ratios) - 1) <= OWN_TIMING_TOLERANCE
        assert events.fact("own_timings_agree")[phase] == agrees
