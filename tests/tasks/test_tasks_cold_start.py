"""The cold start is cold: nothing of a task's work runs before what it times as its first call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]


def window(events: Any, name: str) -> tuple[int, int]:
    """Edges of the first phase of that name."""
    begin, end = (
        next(
            e["t_ns"]
            for e in events
            if e["e"] == "phase" and (e["name"], e["index"], e["edge"]) == (name, 0, edge)
        )
        for edge in ("begin", "end")
    )
    return begin, end


@pytest.fixture
def forwards() -> Iterator[list[int]]:
    """When any module was called, from the first one on."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    seen: list[int] = []
    hook = register_module_forward_pre_hook(lambda *_: seen.append(time.perf_counter_ns()))
    yield seen
    hook.remove()


@pytest.mark.parametrize(
    ("task", "first", "options"),
    [
        ("inference", "first_call", {"prompt_tokens": 8, "new_tokens": 3}),
        ("streaming", "first_call", {"prompt_tokens": 8, "new_tokens": 3}),
        # The first step of training is the first of the warm-up series, and first_call_s its time.
        ("training", "warmup", {"context_tokens": 16, "batch_size": 2}),
    ],
)
def test_no_model_runs_before_the_first_call(
    identity: Identity,
    run: Run,
    saved_model: Path,
    forwards: list[int],
    task: str,
    first: str,
    options: dict[str, Any],
) -> None:
    model = {"source": "path", "path": str(saved_model)}
    events = run(identity("fp32", task=task, model=model, **options))
    begin_ns, end_ns = window(events, first)
    assert forwards, "the hook sees the model"
    assert begin_ns <= forwards[0] <= end_ns
    assert 0.0 < events.value("first_call_s") <= (end_ns - begin_ns) / 1e9


def test_nothing_is_asked_of_llama_cpp_before_the_first_call(
    identity: Identity,
    run: Run,
    tiny_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("xllamacpp")
    from orchestrator.engines.llamacpp.server import LlamaServer

    asked_at: list[int] = []
    complete = LlamaServer.complete

    def watched(self: LlamaServer, *arguments: Any, **named: Any) -> Any:
        asked_at.append(time.perf_counter_ns())
        return complete(self, *arguments, **named)

    monkeypatch.setattr(LlamaServer, "complete", watched)
    model = {"source": "gguf", "path": str(tiny_gguf)}
    options = {"prompt_tokens": 8, "new_tokens": 3}
    events = run(identity("source", engine="llamacpp", model=model, **options))
    begin_ns, end_ns = window(events, "first_call")
    assert begin_ns <= asked_at[0] <= end_ns
    assert events.value("first_call_s") > 0
