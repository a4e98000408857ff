"""task=llamacpp: times read from a stream, formats made for real, a tiny model run for real."""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engines.llamacpp import formats, quality, requantize
from orchestrator.engines.llamacpp.options import context_room, gpu_layers, needed_tokens
from orchestrator.engines.llamacpp.server import read_completion
from orchestrator.engines.text_windows import cut
from orchestrator.errors import ConfigError
from orchestrator.measure import InputError, Mismatch
from orchestrator.measure.registry import find_task
from orchestrator.tasks.llamacpp import OWN_TIMING_TOLERANCE, random_prompt
from testing.checks import check_of

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
check = check_of("llamacpp")
needs_llamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp has no wheel here"
)


def of(file: Path) -> dict[str, Any]:
    return {"source": "gguf", "path": str(file), "architecture": None}


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


def test_times_come_from_chunks_that_brought_a_token() -> None:
    chunks = [
        (101 * MS, chunk(1)),
        (111 * MS, chunk(2, 10.0)),
        (123 * MS, chunk(3, 22.0)),
        (124 * MS, chunk(3, 22.0, **usage(3))),
    ]
    answer = read_completion(0, chunks)
    assert answer.ttft_s == pytest.approx(0.101)
    assert answer.intervals_s == pytest.approx((0.010, 0.012))
    assert answer.decode_s == pytest.approx(0.022)
    assert answer.own_decode_s == pytest.approx(0.022)
    assert answer.own_prefill_s == pytest.approx(0.100)
    assert (answer.prompt_tokens, answer.new_tokens, answer.cached_tokens) == (4, 3, 0)
    assert answer.merged_tokens == 0


def test_tokens_that_came_together_make_no_interval() -> None:
    chunks = [
        (100 * MS, chunk(1)),
        (130 * MS, chunk(3, 30.0)),
        (140 * MS, chunk(4, 40.0)),
        # The last token was held back: it comes with the closing chunk.
        (150 * MS, chunk(5, 50.0, **usage(5))),
    ]
    answer = read_completion(0, chunks)
    assert answer.intervals_s == pytest.approx((0.010, 0.010))
    assert answer.decode_s == pytest.approx(0.050)
    assert answer.merged_tokens == 1


def test_refusals_and_broken_streams_are_said() -> None:
    with pytest.raises(InputError, match="exceeds the context"):
        read_completion(0, [(1, {"error": {"message": "exceeds the context"}})])
    with pytest.raises(Mismatch, match="ended without"):
        read_completion(0, [(1, chunk(1))])


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
    prompt = random_prompt(ids, 50, 1)
    assert len(prompt) == 50
    assert set(prompt) == set(ids)
    assert prompt == random_prompt(ids, 50, 1)
    assert prompt != random_prompt(ids, 50, 2)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_format_is_written_and_close_to_its_source(
    tiny_gguf: Path, tmp_path: Path, name: str
) -> None:
    import gguf
    import numpy as np
    from gguf import quants

    target = tmp_path / f"{name}.gguf"
    requantize.main(tiny_gguf, target, name)
    found = formats.contents(target)
    assert found.vocabulary == 256
    assert found.layers == 1
    assert found.types["F32"] == 3  # the vectors
    embeddings = {"BF16": 0, "Q8_0": 0}.get(name, 2)
    assert found.types[name] == 9 - embeddings
    if embeddings:
        assert found.types["Q8_0"] == embeddings
    before = {t.name: t for t in gguf.GGUFReader(tiny_gguf).tensors}
    for tensor in gguf.GGUFReader(target).tensors:
        source = np.asarray(before[tensor.name].data)
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        assert values.shape == source.shape
        error = np.linalg.norm(values - source) / np.linalg.norm(source)
        assert error < (0.01 if tensor.tensor_type.name in ("F32", "BF16", "Q8_0") else 0.2)


def test_a_format_is_made_once_and_kept_whole(tiny_gguf: Path, cache: Path) -> None:
    made = formats.in_format(tiny_gguf, "ab" * 32, "Q4_0")
    stamp = made.stat().st_mtime_ns
    assert formats.in_format(tiny_gguf, "ab" * 32, "Q4_0") == made
    assert made.stat().st_mtime_ns == stamp
    assert [p.name for p in made.parent.iterdir()] == [made.name]
    assert formats.in_format(tiny_gguf, "ab" * 32, formats.SOURCE) == tiny_gguf


def test_a_full_disk_is_said_in_a_line_and_leaves_nothing(
    tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = formats.publish

    def onto_full_disk(final: Path, build: Callable[[Path], None], **how: Any) -> Path:
        def build_on_it(target: Path) -> None:
            target.symlink_to("/dev/full")
            build(target)

        return publish(final, build_on_it, **how)

    monkeypatch.setattr(formats, "publish", onto_full_disk)
    with pytest.raises(InputError, match="no space left"):
        formats.in_format(tiny_gguf, "cd" * 32, "Q8_0")
    assert list((cache / "formats").iterdir()) == []


def test_a_truncated_file_is_refused(tiny_gguf: Path) -> None:
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[:-2000])
    with pytest.raises(InputError, match="corrupt or truncated"):
        formats.in_format(tiny_gguf, "ef" * 32, "Q8_0")


@pytest.mark.parametrize("name", formats.FORMATS)
def test_expected_weights_are_those_of_the_file_that_is_made(
    identity: Identity, tiny_gguf: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "made.gguf"
    requantize.main(tiny_gguf, target, name)
    found = formats.contents(target)
    assert found.config is not None
    asked = identity(task="llamacpp", model=of(tiny_gguf), format=name, cache_type_v="q8_0")
    expected = find_task("llamacpp").expect(asked, found.config)
    assert expected.sizes_bytes["weights_bytes"] == found.weights_bytes
    # One layer of two key/value heads of 16, keys in 16 bits, values in 34 bytes for 32.
    assert expected.sizes_bytes["kv_bytes"] == 256 * 2 * 16 * (2 + 34 / 32)
    for operation in expected.made_steps()["tpot_s"].eager:
        assert operation.launches == 0
        assert operation.dtype in ("bfloat16" if name == "BF16" else ("int8", "float32"))


def test_a_token_takes_at_least_as_long_as_reading_the_weights(identity: Identity) -> None:
    from orchestrator.model.measured_device import Measured

    bytes_per_s, launch_s = 1e9, 1.0
    fast = ((1e6, 1.0, 1e-9), (1e6, 512.0, 1e-9))
    timings = {f"product.far.{dtype}": fast for dtype in ("float32", "bfloat16", "int8")}
    here = Measured("here", timings, ((1e6, bytes_per_s),), ((1e6, bytes_per_s),), launch_s)
    packaged = {"source": "packaged", "id": "smollm2_135m", "architecture": None}
    for name in ("BF16", "Q4_0"):
        asked = identity(task="llamacpp", model=packaged, format=name)
        expected = find_task("llamacpp").expect(asked, None)
        found = expected.times_s(here, measured=True)["tpot_s"]
        # The cache and activations come on top; a launch from Python does not.
        read_s = expected.sizes_bytes["weights_bytes"] / bytes_per_s
        assert read_s * 0.99 < found.time_s < 1.2 * read_s


def test_what_cannot_be_predicted_is_not(identity: Identity, tiny_gguf: Path) -> None:
    expect = find_task("llamacpp").expect
    # Planning reads no file.
    assert expect(identity(task="llamacpp", model=of(tiny_gguf)), None) is None
    packaged = {"source": "packaged", "id": "smollm2_135m", "architecture": None}
    half = identity(task="llamacpp", model=packaged, gpu_layers="50%")
    assert expect(half, None).made_steps() == {}
    whole = identity(task="llamacpp", model=packaged, gpu_layers="all")
    assert set(expect(whole, None).made_steps()) == {"ttft_s", "tpot_s"}


def test_the_context_has_room_for_what_is_run(identity: Identity) -> None:
    task = identity(task="llamacpp", prompt_tokens=200, new_tokens=60)["task"]
    assert needed_tokens(task) == 260
    assert context_room(task) == 512
    assert context_room({**task, "context_tokens": 300}) == 300
    # The text is cut into windows; begin-of-text and a generated token stand beside one.
    assert needed_tokens({**task, "quality_tokens": 300}) == 302
    assert needed_tokens({**task, "quality_tokens": 6000}) == 514


@needs_llamacpp
def test_without_a_reference_the_reason_is_said(
    identity: Identity, run: Run, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*of: Any) -> Path:
        raise InputError("no space left for the model cache")

    in_format = formats.in_format
    monkeypatch.setattr(
        formats,
        "in_format",
        lambda *of: full(*of) if of[2] == formats.REFERENCE else in_format(*of),
    )
    asked = identity(
        task="llamacpp",
        model=of(tiny_gguf),
        prompt_tokens=8,
        new_tokens=2,
        quality_tokens=8,
    )
    events = run(asked)
    assert events.value("perplexity") > 1
    assert "no BF16 of these weights: no space left" in events.absent("kl_to_reference")


@needs_llamacpp
def test_a_prompt_longer_than_the_file_s_context_is_refused(
    identity: Identity, run: Run, tiny_gguf: Path
) -> None:
    with pytest.raises(InputError, match=r"take 140 tokens; the context has 128.*Shorten"):
        run(identity(task="llamacpp", model=of(tiny_gguf), prompt_tokens=130, new_tokens=10))


class Spoken:
    """A server that gives the same distribution whatever it is asked."""

    def __init__(self, probabilities: list[float]) -> None:
        self.found = sorted(
            ((token, math.log(p)) for token, p in enumerate(probabilities)), key=lambda t: -t[1]
        )
        self.asked: list[int] = []

    def next_logprobs(self, prompt: Any, count: int) -> list[tuple[int, float]]:
        self.asked.append(count)
        return self.found[:count]


def test_perplexity_is_of_the_tokens_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "TOP", 2)
    server = Spoken([0.5, 0.25, 0.125, 0.125])
    found = quality.predict(server, cut([9, 0, 1, 3], 512), 4)
    # -log of 1/2, 1/4 and 1/8: two bits on average. The last one is not among the likeliest two.
    assert found.perplexity == pytest.approx(4)
    assert server.asked == [2, 2, 2, 4]
    assert found.ids.tolist() == [[0, 1]] * 3
    with pytest.raises(Mismatch, match="token 7"):
        quality.predict(server, cut([0, 7], 512), 4)


def predicted(probabilities: list[float], top: int) -> quality.Predictions:
    import numpy as np

    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])[:top]
    logs = [[math.log(probabilities[token]) for token in order]]
    return quality.Predictions(
        np.array([order], np.int32), np.array(logs, np.float32), np.array([0.0])
    )


@given(
    st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
    st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
    st.integers(1, 5),
)
def test_the_distance_never_exceeds_the_whole_divergence(
    a: list[float], b: list[float], top: int
) -> None:
    p, q = ([value / sum(values) for value in values] for values in (a, b))
    whole = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    found = quality.distance(predicted(q, top), predicted(p, top))
    assert 0 <= found.kl_nats <= whole + 1e-5
    assert found.top1_agreement == float(p.index(max(p)) == q.index(max(q)))
    if top == 5:
        assert found.kl_nats == pytest.approx(whole, abs=1e-5)


def test_predictions_are_kept_as_they_are(tmp_path: Path) -> None:
    before = predicted([0.5, 0.25, 0.25], 2)
    before.save(tmp_path / "kept.npz")
    after = quality.Predictions.load(tmp_path / "kept.npz")
    assert after.ids.tolist() == before.ids.tolist()
    assert after.logprobs.tolist() == before.logprobs.tolist()
    assert quality.distance(after, before) == quality.Distance(0.0, 1.0)


@needs_llamacpp
def test_bad_input_is_refused_while_planning(identity: Identity, tiny_gguf: Path) -> None:
    def asked(quant: str = "fp32", model: dict[str, Any] | None = None, **options: Any) -> Any:
        return identity(quant, task="llamacpp", model=model or of(tiny_gguf), **options)

    assert check(asked()) is None
    with pytest.raises(ConfigError, match="not one of source, BF16"):
        check(asked(format="Q9_9"))
    with pytest.raises(ConfigError, match="formats of its own"):
        check(asked("nf4"))
    with pytest.raises(ConfigError, match="runs GGUF files"):
        check(asked(model={"source": "random", "architecture": {"model_type": "llama"}}))
    for layers in ("25%", "all", "3"):
        assert "needs a GPU" in (check(asked(gpu_layers=layers)) or "")
    assert "needs flash attention" in (
        check(asked(flash_attention="off", cache_type_v="q8_0")) or ""
    )
    assert "more than" in (check(asked(context_tokens=64, prompt_tokens=64)) or "")


def test_a_missing_package_says_what_to_install(
    identity: Identity, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "xllamacpp" else find_spec(name, *rest),
    )
    with pytest.raises(ConfigError) as caught:
        check(identity(task="llamacpp", model=of(tiny_gguf)))
    assert str(caught.value).endswith("pip install -c constraints.txt xllamacpp")


@needs_llamacpp
def test_tiny_model_is_measured_for_real(identity: Identity, run: Run, tiny_gguf: Path) -> None:
    new = 12
    asked = identity(
        task="llamacpp",
        model=of(tiny_gguf),
        format="Q4_0",
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
    assert 0 < events.value("kl_to_reference") < 0.1
    assert 0 <= events.value("top1_agreement") <= 1
    expected = find_task("llamacpp").expect(asked, events.fact("model_config"))
    assert expected.sizes_bytes["weights_bytes"] == events.value("weights_bytes")
    assert set(expected.made_steps()) == {"ttft_s", "tpot_s"}


@needs_llamacpp
def test_the_reference_is_no_distance_from_itself(
    identity: Identity, run: Run, tiny_gguf: Path, cache: Path
) -> None:
    events = run(
        identity(
            task="llamacpp",
            model=of(tiny_gguf),
            format="BF16",
            prompt_tokens=8,
            new_tokens=2,
            quality_tokens=8,
        )
    )
    assert events.value("kl_to_reference") == 0
    assert events.value("top1_agreement") == 1
    assert events.value("reference_perplexity") == events.value("perplexity")
    assert [file.suffix for file in (cache / "references").iterdir()] == [".npz"]


@needs_llamacpp
@pytest.mark.long
@pytest.mark.xdist_group("packaged_model")
@pytest.mark.usefixtures("machine_cache")
def test_packaged_model_has_the_quality_of_its_format(identity: Identity, run: Run) -> None:
    asked = identity(
        task="llamacpp",
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
    assert 0 < events.value("kl_to_reference") < 0.05
    assert events.value("top1_agreement") > 0.8
    expected = find_task("llamacpp").expect(asked, events.fact("model_config"))
    assert expected.sizes_bytes["weights_bytes"] == events.value("weights_bytes")
    # llama.cpp's own reading: the same thing in the same unit. Whether they agree to the stated
    # tolerance is said of each attempt, for it is the machine's business.
    for phase in ("prefill", "decode"):
        ratios = events.samples(f"{phase}_over_own_timing")
        assert all(0.5 < ratio < 2 for ratio in ratios), phase
        agrees = abs(statistics.median(ratios) - 1) <= OWN_TIMING_TOLERANCE
        assert events.fact("own_timings_agree")[phase] == agrees


@pytest.fixture
def machine_cache() -> None:
    """Marks a test for the ``cache`` fixture: the digest of a large file is remembered."""
