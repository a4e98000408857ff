"""task=inference on a tiny model: every metric there, and each one what docs/protocol.md says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.engines import registry
from orchestrator.engines.digest import ids_digest
from orchestrator.engines.registry import expect
from orchestrator.engines.transformers.compilation import CompileWatch
from orchestrator.errors import ConfigError
from orchestrator.measure import InputError, Mismatch
from orchestrator.model import flops, moved_bytes
from testing.checks import check_of
from testing.trial import TINY

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
check = check_of("inference")


def test_metrics_agree_with_their_definitions(identity: Identity, run: Run) -> None:
    batch, prompt, new = 2, 32, 9
    events = run(identity(batch_size=batch, prompt_tokens=prompt, new_tokens=new))
    ttft, e2e = events.samples("ttft_s"), events.samples("e2e_s")
    itl, tpot = events.samples("itl_s"), events.samples("tpot_s")
    rate = events.samples("decode_tokens_per_s")
    assert len(ttft) == len(e2e) == len(tpot) == len(rate) == 3
    assert len(itl) == 3 * (new - 1)
    for i in range(3):
        intervals = itl[i * (new - 1) : (i + 1) * (new - 1)]
        assert tpot[i] == pytest.approx(sum(intervals) / (new - 1))
        assert rate[i] == pytest.approx(batch * (new - 1) / sum(intervals))
        assert e2e[i] == pytest.approx(ttft[i] + sum(intervals))
        assert events.samples("prefill_tokens_per_s")[i] == pytest.approx(batch * prompt / ttft[i])
    assert len(events.samples("tpot_s", "warmup")) == 1
    assert len(events.samples("itl_s", "warmup")) == new - 1
    assert events.value("peak_memory_over_weights_bytes") > 0
    assert events.value("process_memory_bytes") > events.value("weights_bytes")


def test_phases_come_in_order_and_the_first_call_is_first(identity: Identity, run: Run) -> None:
    events = run(identity(prompt_tokens=8, new_tokens=3))
    assert events.phases() == [
        "prepare",
        "load",
        "first_call",
        "warmup",
        *["prefill", "decode"] * 3,
        "prove",
    ]
    measured = {e["name"] for e in events if e["e"] == "phase" and e["measured"]}
    assert measured == {"prefill", "decode"}
    assert events.value("first_call_s") > 0


def test_phases_enclose_what_was_timed(identity: Identity, run: Run) -> None:
    events = run(identity(prompt_tokens=8, new_tokens=5))
    edges = {(e["name"], e["index"], e["edge"]): e["t_ns"] for e in events if e["e"] == "phase"}
    for i, (ttft, tpot) in enumerate(
        zip(events.samples("ttft_s"), events.samples("tpot_s"), strict=True)
    ):
        spans = [
            (edges[name, i, "end"] - edges[name, i, "begin"]) / 1e9
            for name in ("prefill", "decode")
        ]
        assert spans[0] >= ttft
        assert spans[1] >= 4 * tpot * (1 - 1e-9)


def test_one_new_token_has_no_decode_and_says_so(identity: Identity, run: Run) -> None:
    events = run(identity(prompt_tokens=8, new_tokens=1))
    assert len(events.samples("ttft_s")) == 3
    for name in ("itl_s", "tpot_s", "decode_tokens_per_s"):
        assert "one new token" in events.absent(name)
    assert "decode" not in events.phases()


def test_a_text_is_read_by_the_models_own_tokenizer(
    identity: Identity, run: Run, tiny_gguf: Path, tmp_path: Path
) -> None:
    asked = identity(
        model={"source": "gguf", "path": str(tiny_gguf)},
        engine="llamacpp",
        quant="source",
        prompt_tokens=8,
        new_tokens=2,
    )
    text = tmp_path / "text.txt"
    text.write_text("ab" * 40)
    digests = {}
    for prompt in ("random", str(text)):
        asked["task"]["prompt"] = prompt
        found = run(asked).fact("prompt")
        assert found["of"] == prompt
        digests[prompt] = found["digest"]
    assert digests[str(text)] == ids_digest([2] * 8)  # "ab" is one token
    asked["task"]["prompt"] = str(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"task.prompt=.*no such text|no such text.*task.prompt"):
        run(asked)


def test_a_model_without_a_tokenizer_reads_no_text(identity: Identity, run: Run) -> None:
    with pytest.raises(InputError, match=r"no tokenizer.*task.prompt=random"):
        run(identity(prompt="text", prompt_tokens=8, new_tokens=2))


def test_the_same_seed_generates_the_same_tokens(identity: Identity, run: Run) -> None:
    asked = identity(prompt_tokens=16, new_tokens=6)
    first = list(run(asked).fact("output_digests"))
    assert len(first) == 1  # the same in every repetition
    assert run(asked).fact("output_digests") == first
    assert run({**asked, "seed": 1}).fact("output_digests") != first


def test_an_injected_sleep_is_in_every_interval(identity: Identity, run: Run) -> None:
    events = run(identity(prompt_tokens=8, new_tokens=4, token_sleep_s=0.02))
    assert min(events.samples("itl_s")) >= 0.02


@pytest.mark.parametrize("quant", ["bf16", pytest.param("int8", marks=pytest.mark.long), "nf4"])
def test_quality_follows_in_a_phase_of_its_own(identity: Identity, run: Run, quant: str) -> None:
    events = run(identity(quant, prompt_tokens=8, new_tokens=2, quality_tokens=64))
    assert events.phases()[-2:] == ["quality", "reference"]
    assert 0 < events.value("kl_to_reference") < 0.01
    assert events.engaged("weights")["ok"]


def test_a_context_known_only_after_loading_is_still_a_limit(identity: Identity, run: Run) -> None:
    asked = identity(prompt_tokens=510, new_tokens=3)
    assert "context of 512" in str(check(asked))
    with pytest.raises(InputError, match="context of 512"):
        run(asked)


def test_a_depth_is_in_the_cache_and_not_in_the_times(identity: Identity, run: Run) -> None:
    model = {"architecture": {**TINY, "num_hidden_layers": 1}}
    deep = identity(model=model, depth=24, prompt_tokens=8, new_tokens=4, batch_size=2)
    events = run(deep)
    assert events.engaged("cache length")["got"] == "35 tokens held"  # 24 + 8 + 4 - 1
    assert events.engaged("cache")["got"].startswith("error")
    for ttft, rate in zip(
        events.samples("ttft_s"), events.samples("prefill_tokens_per_s"), strict=True
    ):
        assert rate == pytest.approx(2 * 8 / ttft)
    # The same ids, computed at once: so many of them in the cache changes no token.
    whole = run(identity(model=model, prompt_tokens=32, new_tokens=4, batch_size=2))
    assert whole.fact("prompt") == events.fact("prompt")
    assert whole.fact("output_digests") == events.fact("output_digests")
    alone = run(identity(model=model, prompt_tokens=8, new_tokens=4, batch_size=2))
    assert alone.fact("output_digests") != events.fact("output_digests")


def test_a_depth_counts_in_the_context_and_in_what_is_expected(identity: Identity) -> None:
    asked = identity(depth=480, prompt_tokens=31, new_tokens=1)
    assert check(asked) is None
    deeper = identity(depth=481, prompt_tokens=31, new_tokens=1)
    assert "depth + prompt_tokens + new_tokens = 513" in str(check(deeper))
    deep, shallow = (
        expect(identity(depth=depth, prompt_tokens=32, new_tokens=8), None) for depth in (256, 0)
    )
    assert deep is not None
    assert shallow is not None
    assert deep.sizes_bytes["kv_bytes"] == shallow.sizes_bytes["kv_bytes"] * (256 + 39) // 39
    for name, steps in deep.made_steps().items():
        less = shallow.made_steps()[name]
        # The weights are the same; what is attended to is more.
        assert moved_bytes(steps.ideal) > moved_bytes(less.ideal)
        assert flops(steps.ideal) > flops(less.ideal)


def test_an_engine_that_cannot_fill_its_cache_says_so(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = identity(depth=8, prompt_tokens=8)
    flat = dataclasses.replace(registry.engine_of(asked), takes_depth=False)
    monkeypatch.setattr(registry, "engine_of", lambda _: flat)
    assert "use task.depth=0" in str(check(asked))


def test_what_the_device_cannot_do_is_infeasible(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(identity(prompt_tokens=480)) is None
    assert "CUDA" in str(check(identity(attention="flash_attention_2")))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in str(check(identity(prompt_tokens=8, compile=True)))
    assert check(identity(prompt_tokens=8, compile=False)) is None


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"batch_size": 0}, "task.batch_size"),
        ({"prompt_tokens": -1}, "task.prompt_tokens"),
        ({"new_tokens": 0}, "task.new_tokens"),
        ({"depth": -1}, "task.depth"),
        ({"quality_tokens": -1}, "task.quality_tokens"),
        ({"attention": "fast"}, "engine.attention"),
        ({"token_sleep_s": -1.0}, "engine.token_sleep_s"),
    ],
)
def test_what_has_no_sense_is_a_configuration_error(
    identity: Identity, options: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError, match=where):
        check(identity(**options))


def test_a_missing_model_is_found_while_planning(identity: Identity) -> None:
    with pytest.raises(ConfigError, match="no such model directory"):
        check(identity(model={"source": "path", "path": "/nowhere"}))
    asked = identity()
    asked["quant"]["scheme"] = "int3"
    with pytest.raises(ConfigError, match=r"quant.scheme: 'int3' is not one of none"):
        check(asked)


def test_a_static_cache_has_room_for_the_work_and_gives_the_same_tokens(
    identity: Identity, run: Run
) -> None:
    # One layer looks back over a window only, whose cache is as long as that.
    layers = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    model = {"architecture": {**TINY, "model_type": "qwen2", "use_sliding_window": True, **layers}}
    asked = {"model": model, "depth": 8, "prompt_tokens": 16, "new_tokens": 8, "batch_size": 2}
    grown, static = (run(identity(**asked, cache=cache)) for cache in ("dynamic", "static"))
    assert static.fact("output_digests") == grown.fact("output_digests")
    assert static.engaged("cache length")["got"] == "31 tokens held"
    assert static.engaged("cache")["got"].startswith("error")
    assert static.engaged("causal")["ok"]
    # Keys and values of two heads: the window, and all tokens.
    assert static.fact("cache_bytes") == 2 * (16 + 32) * (2 * 16 * 2) * 4
    assert grown.fact("cache_bytes") == 2 * (15 + 31) * (2 * 16 * 2) * 4


def test_a_static_cache_is_expected_with_all_its_room(identity: Identity) -> None:
    found = [
        expect(identity(prompt_tokens=25, cache=cache), None) for cache in ("dynamic", "static")
    ]
    grown, static = (each.sizes_bytes["kv_bytes"] for each in found if each is not None)
    assert static * 56 == grown * 57


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": {"architecture": {"model_type": "mamba"}}}, "no mamba that it runs over"),
        ({"compile": True, "new_tokens": 1}, "task.new_tokens=1 has none"),
    ],
)
def test_what_has_no_static_cache_is_infeasible(
    identity: Identity, options: dict[str, Any], reason: str
) -> None:
    assert reason in str(check(identity(prompt_tokens=8, cache="static", **options)))
    assert check(identity(prompt_tokens=8, cache="dynamic", **options)) is None


@pytest.mark.usefixtures("shared_compiler")
@pytest.mark.long
@pytest.mark.xdist_group("compiler")
def test_a_step_over_a_static_cache_is_one_graph(identity: Identity, run: Run) -> None:
    asked = identity(prompt_tokens=8, new_tokens=6, cache="static", compile=True)
    asked["model"]["architecture"]["num_hidden_layers"] = 1
    plain = {**asked, "engine": identity()["engine"]}
    events = run(asked)
    assert events.value("compile_graphs") == 1
    assert events.value("compile_graph_breaks") == 0
    assert events.value("compile_recompiles") == 0
    assert events.fact("compiled_while_measured") is False
    assert events.engaged("compile")["asked"] == "1 graph, whole and settled"
    assert events.fact("output_digests") == run(plain).fact("output_digests")


@pytest.mark.usefixtures("shared_compiler")
@pytest.mark.long
@pytest.mark.xdist_group("compiler")
def test_a_step_of_several_graphs_is_found(recorder: Any) -> None:
    def broken(x: Any) -> Any:
        half = x.sin()
        torch._dynamo.graph_break()
        return half.cos()

    watch = CompileWatch(broken, recorder[0])
    watch.settle(lambda: watch.forward(torch.zeros(8)))
    with pytest.raises(Mismatch, match="compile"):
        watch.record(recorder[0], one_graph=True)


@pytest.mark.usefixtures("shared_compiler")
@pytest.mark.long
@pytest.mark.xdist_group("compiler")
def test_compile_counts_graphs_and_its_time_apart(identity: Identity, run: Run) -> None:
    # Two shapes, a prompt and one step: every further one costs seconds.
    asked = identity(prompt_tokens=8, new_tokens=2, compile=True)
    asked["model"]["architecture"]["num_hidden_layers"] = 1
    events = run(asked)
    assert events.value("compile_s") > 0
    assert events.value("compile_graphs") >= 1
    assert events.value("compile_graph_breaks") == 0
    assert events.fact("compiled_while_measured") is False
    assert events.engaged("compile")["ok"]
    assert max(events.samples("ttft_s")) < events.value("compile_s")
