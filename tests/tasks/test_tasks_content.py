"""What a model is made of: every file that its loader reads, and no other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines.content import content_of, text_content


def model(source: str, path: Path) -> dict[str, Any]:
    return {
        "source": source,
        "path": str(path),
        "id": None,
        "revision": None,
        "trust_remote_code": True,
    }


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"rms_norm_eps": 1e-6}')
    (made / "tokenizer.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(1000))
    return made


@pytest.mark.parametrize(
    ("name", "content", "changed"),
    [
        ("model.safetensors", bytes(999) + b"\1", {"weights"}),
        ("config.json", b'{"rms_norm_eps": 1e-5}', {"model files"}),
        ("generation_config.json", b"{}", {"model files"}),
        ("tokenizer.model", b"x", {"model files"}),
        ("modeling_own.py", b"x", {"model files"}),
        ("README.md", b"x", set()),
        # transformers reads model.safetensors, whatever lies beside it.
        ("pytorch_model.bin", b"x", set()),
        ("model-00001-of-00002.safetensors", b"x", set()),
    ],
)
def test_a_directory_is_the_files_that_are_read(
    directory: Path, name: str, content: bytes, changed: set[str]
) -> None:
    before = content_of(model("path", directory))
    assert None not in before.values()
    # Written in its place, as large as it was: neither its name nor its size tells.
    (directory / name).write_bytes(content)
    after = content_of(model("path", directory))
    assert {key for key in before if before[key] != after[key]} == changed
    os.utime(directory / name, (1, 1))
    assert content_of(model("path", directory)) == after


def test_a_split_gguf_is_all_of_its_files(directory: Path) -> None:
    files = [directory / f"t-{number:05d}-of-00002.gguf" for number in (1, 2)]
    for file in files:
        file.write_bytes(bytes(10))
    before = content_of(model("gguf", files[0]))
    files[1].write_bytes(bytes(9) + b"\1")
    assert content_of(model("gguf", files[0])) != before
    files[1].unlink()
    assert content_of(model("gguf", files[0])) == {"weights": "none"}


def test_random_weights_are_their_configuration() -> None:
    assert content_of({"source": "random", "architecture": {"model_type": "llama"}}) == {}


def test_a_text_is_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("one")
    before = text_content(str(text))
    text.write_text("two")
    assert text_content(str(text)) != before
    assert text_content("random") == {}
    assert text_content("auto") == text_content("pydoc_topics") != {}
