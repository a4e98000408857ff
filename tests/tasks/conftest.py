"""Identities, a recorder that keeps its events, and tiny models on disk."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import HostClock, InputError, Recorder
from orchestrator.measure.registry import find_task
from testing.environments import isolation_with
from testing.trial import TINY, make_identity


class Events(list):
    """What a task emitted, with a few ways to ask for it."""

    def value(self, name: str) -> float:
        (found,) = [e["value"] for e in self if e["e"] == "value" and e["name"] == name]
        return found

    def absent(self, name: str) -> str:
        (found,) = [e["reason"] for e in self if e["e"] == "absent" and e["name"] == name]
        return found

    def samples(self, name: str, role: str = "measured") -> list[float]:
        return [
            value
            for e in self
            if e["e"] == "samples" and e["name"] == name and e["role"] == role
            for value in e["values"]
        ]

    def median(self, name: str) -> float:
        return statistics.median(self.samples(name))

    def fact(self, key: str) -> Any:
        (found,) = [e["value"] for e in self if e["e"] == "fact" and e["key"] == key]
        return found

    def engaged(self, what: str) -> dict[str, Any]:
        (found,) = [e for e in self if e["e"] == "engaged" and e["what"] == what]
        return found

    def phases(self) -> list[str]:
        return [e["name"] for e in self if e["e"] == "phase" and e["edge"] == "begin"]


@pytest.fixture
def identity() -> Callable[..., dict[str, Any]]:
    return make_identity


@pytest.fixture
def recorder(tmp_path: Path) -> tuple[Recorder, Events]:
    events = Events()
    directory = tmp_path / "attempt"
    directory.mkdir()
    return Recorder(events.append, HostClock(), directory), events


@pytest.fixture
def run(tmp_path: Path) -> Callable[[dict[str, Any]], Events]:
    """Run a task by its identity, as an attempt of its own, and give what it emitted."""

    def run(identity: dict[str, Any]) -> Events:
        events = Events()
        directory = Path(tempfile.mkdtemp(dir=tmp_path))
        recorder = Recorder(events.append, HostClock(), directory)
        find_task(identity["task"]["name"]).run(identity, recorder)
        return events

    return run


@pytest.fixture(scope="session")
def compilers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the C++ compiler needs, made by the first test that compiles."""
    return tmp_path_factory.mktemp("compilers")


@pytest.fixture
def shared_compiler(cache: Path, compilers: Path) -> None:
    """Leave the compiler's own set-up to whoever compiled first."""
    cache.mkdir(mode=0o700)
    (cache / "compilers").symlink_to(compilers)


@pytest.fixture(scope="module")
def isolation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Isolation]:
    """Attempts in the environment that the module names, which share one cache."""
    with isolation_with(request.module.ENVIRONMENT, tmp_path_factory.mktemp("cache")) as made:
        yield made


@pytest.fixture
def machine_cache() -> None:
    """Marks a test for :func:`cache`: what was made of a large file is remembered."""


@pytest.fixture(autouse=True)
def cache(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Path]:
    """A cache of this test's own, and threads put back as they were."""
    import torch

    directory = tmp_path_factory.mktemp("cache") / "orchestrator"
    if not {"machine_cache", "isolation"} & set(request.fixturenames):
        monkeypatch.setenv("ORCHESTRATOR_CACHE", str(directory))
    threads = torch.get_num_threads()
    yield directory
    torch.set_num_threads(threads)


@pytest.fixture
def saved_model(tmp_path: Path) -> Path:
    """The tiny model in a directory, as ``save_pretrained`` leaves it."""
    from orchestrator.engines.transformers import random_weights as architecture

    directory = tmp_path / "model"
    config = architecture.configuration(TINY)
    architecture.build(config, 0, "float32", "sdpa").save_pretrained(directory)
    return directory


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A one-layer llama with a small tokenizer as a GGUF file, float32."""
    import gguf
    import numpy as np

    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    hidden, middle, vocabulary = 64, 128, 256
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(middle)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // 4)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", *(f"t{i}" for i in range(vocabulary - 3))])
    writer.add_token_merges(["a b"])
    writer.add_token_types([1] * vocabulary)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (vocabulary, hidden),
        "output": (vocabulary, hidden),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (hidden // 2, hidden),
        "blk.0.attn_v": (hidden // 2, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_gate": (middle, hidden),
        "blk.0.ffn_up": (middle, hidden),
        "blk.0.ffn_down": (hidden, middle),
        "output_norm": (hidden,),
        "blk.0.attn_norm": (hidden,),
        "blk.0.ffn_norm": (hidden,),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.05, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def reads_bytes(tiny_gguf: Path, tmp_path: Path) -> Path:
    """The tiny model with a token for every byte but one: it can read any text."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from testing.gguf import rewritten

    tokens = [*list(bytes_to_unicode().values())[:255], "ab"]
    changed = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.pre": "gpt-2"}
    return rewritten(tiny_gguf, tmp_path / "bytes.gguf", changed)


@pytest.fixture
def writes_ascii(tiny_gguf: Path, tmp_path: Path) -> Path:
    """The tiny model with tokens for ASCII, and words of it: every text that it writes is one."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from testing.gguf import rewritten

    signs = bytes_to_unicode()
    tokens = [*(signs[byte] for byte in range(128)), *(f"w{n};" for n in range(127)), "ab"]
    changed = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.pre": "gpt-2"}
    return rewritten(tiny_gguf, tmp_path / "ascii.gguf", changed)


@pytest.fixture
def converts_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions in this process: another one takes seconds to import what is here already."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.integrations.gguf import reader

    from orchestrator.engines.transformers import convert, dequantise

    for owner, name in (
        (gguf, "GGUFReader"),
        (gguf, "get_tensor_name_map"),
        (reader, "_mapped"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for kind in {reading.TensorProcessor, *reading.TENSOR_PROCESSORS.values()}:
        if "process" in vars(kind):
            monkeypatch.setattr(kind, "process", kind.process)

    def run_forked(work: Any, gguf: Path, directory: Path, *, failed: str, **said: str) -> None:
        try:
            dequantise.main(gguf, directory)
        except dequantise.NotKept as error:
            raise InputError(f"{failed}: {error}", **said) from error

    monkeypatch.setattr(convert, "run_forked", run_forked)
