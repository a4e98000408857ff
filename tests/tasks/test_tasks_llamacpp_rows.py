"""engine=llamacpp after a depth, with several sequences, with a draft: the tokens are its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines.llamacpp.same_tokens import judge_tokens
from orchestrator.engines.llamacpp.server import LlamaServer, Setting
from orchestrator.engines.registry import expect
from orchestrator.errors import ConfigError
from orchestrator.measure import Mismatch
from testing.checks import check_of
from testing.gguf import of_gguf

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
check = check_of("inference")
needs_llamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp has no wheel here"
)


@needs_llamacpp
def test_a_depth_is_in_the_cache_of_every_repetition(
    identity: Identity, run: Run, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = {"engine": "llamacpp", "model": of_gguf(tiny_gguf), "new_tokens": 6}
    deep = identity("source", depth=40, prompt_tokens=24, **work)
    events = run(deep)
    assert events.engaged("prompt tokens")["got"] == "64"
    assert events.engaged("prompt tokens from a cache")["got"] == "40"
    assert events.fact("proofs")["depth"] != "failed"
    assert len(events.fact("output_digests")) == 1
    # The same ids, computed at once.
    whole = run(identity("source", prompt_tokens=64, **work))
    assert whole.fact("prompt") == events.fact("prompt")
    assert whole.fact("output_digests") == events.fact("output_digests")
    # Left to itself the server keeps the prompt, too.
    monkeypatch.setattr(LlamaServer, "fill", lambda *of: None)
    with pytest.raises(Mismatch, match=r"from a cache\) and gave 1; asked for 64 \(40 from"):
        run(deep)


@needs_llamacpp
def test_several_sequences_are_generated_at_once(
    identity: Identity, run: Run, tiny_gguf: Path
) -> None:
    # More tokens than engine.batch, and less in common with the cache than the server looks for.
    asked = identity(
        "source",
        engine="llamacpp",
        model=of_gguf(tiny_gguf),
        batch_size=3,
        batch=32,
        micro_batch=32,
        depth=4,
        prompt_tokens=60,
        new_tokens=8,
    )
    events = run(asked)
    assert events.engaged("prompt tokens")["got"] == "64"
    assert events.engaged("prompt tokens from a cache")["got"] == "4"
    assert "24 the same" in events.engaged("tokens of each row")["got"]
    for rate, tpot in zip(
        events.samples("decode_tokens_per_s"), events.samples("tpot_s"), strict=True
    ):
        assert rate == pytest.approx(3 / tpot)
    expected = expect(asked, events.fact("model_config"))
    one = expect(identity("source", engine="llamacpp"), events.fact("model_config"))
    assert expected.sizes_bytes["kv_bytes"] > one.sizes_bytes["kv_bytes"] / 3
    assert set(expected.made_steps()) == {"ttft_s", "tpot_s"}


@pytest.fixture
def server(tiny_gguf: Path) -> Iterator[LlamaServer]:
    plain = {"flash_attention": "auto", "cache_type_k": "f16", "cache_type_v": "f16"}
    sizes = {"rows": 2, "context_tokens": 256, "threads": 1, "threads_batch": 1}
    rest = {"batch": 64, "micro_batch": 64, "gpu_layers": 0, "mmap": True, "mlock": False}
    made = LlamaServer(Setting(file=tiny_gguf, **sizes, **rest, **plain))  # type: ignore[arg-type]
    yield made
    made.close()


@needs_llamacpp
def test_other_tokens_than_the_model_s_own_are_found(server: LlamaServer) -> None:
    rows = [[5, 9, 30, 7], [8, 100, 3, 60]]
    got = server.tokens(rows, 6)
    assert judge_tokens(server, rows, got).state == "proven"
    swapped = judge_tokens(server, rows, got[::-1])
    assert swapped.state == "failed"
    got[1][3] = (got[1][3] + 1) % 256
    found = judge_tokens(server, rows, got)
    assert found.state == "failed"
    assert f"token 3 is {got[1][3]}" in found.got


class Even:
    """Two tokens nearly as likely, and results that scatter by ``scatter``."""

    def __init__(self, scatter: float) -> None:
        self.scatter = scatter

    def tokens(self, prompt: list[list[int]], new_tokens: int) -> list[list[int]]:
        return [[0] * new_tokens for _ in prompt]

    def next_logprobs(
        self, ids: list[int], count: int, *, cached: bool = True
    ) -> list[tuple[int, float]]:
        return [(0, -0.7), (1, -0.71 + self.scatter * cached)]


@pytest.mark.parametrize(("scatter", "state"), [(0.006, "proven"), (0.003, "failed")])
def test_of_two_tokens_nearer_than_results_scatter_either_will_do(
    scatter: float, state: str
) -> None:
    server: Any = Even(scatter)
    found = judge_tokens(server, [[7, 7]], [[0, 1, 0, 1]])
    assert found.state == state
    if state == "proven":
        assert found.got.startswith("2 of 4 the same")


@needs_llamacpp
def test_a_draft_changes_no_token_and_what_it_brings_is_predicted(
    identity: Identity, run: Run, tiny_gguf: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("ab" * 40)
    work = {"model": of_gguf(tiny_gguf), "prompt": str(text), "prompt_tokens": 24, "new_tokens": 16}
    asked = identity("source", engine="llamacpp", draft="q4_0", draft_tokens=3, **work)
    events = run(asked)
    assert "16 the same" in events.engaged("tokens with a draft")["got"]
    assert events.engaged("draft")["got"] == "Q4_0"
    assert events.value("draft_weights_bytes") < events.value("weights_bytes")
    plain = run(identity("source", engine="llamacpp", **work))
    assert plain.fact("output_digests") == events.fact("output_digests")
    found = events.fact("speculation")
    assert found["tokens_a_step"] == pytest.approx(
        1 + events.value("draft_acceptance") * found["drafted_a_step"]
    )
    assert (events.fact("tokens_that_came_together") > 0) == (found["tokens_a_step"] > 1)
    assert events.value("draft_speedup") > 0
    assert events.value("predicted_draft_speedup") > 0
    config = events.fact("model_config")
    with_draft, without = (
        expect({**asked, "engine": {**asked["engine"], "draft": draft}}, config)
        for draft in ("q4_0", None)
    )
    assert with_draft.sizes_bytes == without.sizes_bytes
    more = with_draft.floor_bytes - without.floor_bytes
    assert more == events.value("draft_weights_bytes") + without.sizes_bytes["kv_bytes"]
    assert with_draft.made_steps() == {}


@needs_llamacpp
def test_a_draft_like_the_model_is_always_right(
    identity: Identity, run: Run, tiny_gguf: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("ab" * 80)
    work = {"prompt": str(text), "depth": 10, "prompt_tokens": 14, "new_tokens": 16}
    draft = {"draft": "q4_0", "draft_tokens": 2}
    events = run(identity("q4_0", engine="llamacpp", model=of_gguf(tiny_gguf), **work, **draft))
    assert events.value("draft_acceptance") == 1
    # One by the prefill, then five times three.
    assert events.fact("speculation")["tokens_a_step"] == 3
    assert events.absent("itl_s") == "each token came together with another"
    assert events.engaged("prompt tokens from a cache")["got"] == "10"


def test_a_draft_that_makes_no_sense_is_said_while_planning(
    identity: Identity, tiny_gguf: Path
) -> None:
    def reason(**options: Any) -> str:
        given = {"prompt": "text", "draft": "q4_0", "draft_tokens": 4, "prompt_tokens": 16}
        return str(
            check(
                identity(
                    "source", engine="llamacpp", model=of_gguf(tiny_gguf), **{**given, **options}
                )
            )
        )

    assert reason() == "None"
    assert "Give engine.draft_tokens=4" in reason(draft_tokens=None)
    assert "give engine.draft=q4_0, too" in reason(draft=None)
    assert "task.prompt=text" in reason(prompt="random")
    assert "task.batch_size=1" in reason(batch_size=2)
    assert "task.new_tokens=32" in reason(new_tokens=1)
    assert "task.prompt_tokens=6, at least" in reason(prompt_tokens=5)
    with pytest.raises(ConfigError, match=r"engine\.draft"):
        reason(draft="nf4")
