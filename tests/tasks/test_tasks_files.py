"""Which files a model is: what the loader takes is what is loaded, weighed and digested."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.engines import gguf_formats as formats
from orchestrator.engines import transformers as loading
from orchestrator.engines.digest import digest_files
from orchestrator.engines.gguf_files import gguf_files, read_gguf
from orchestrator.engines.source import (
    content_files,
    directory_problem,
    find_problem,
    weight_files,
)
from orchestrator.engines.transformers import convert, dequantise
from orchestrator.engines.transformers import random_weights as architecture
from orchestrator.measure import InputError
from testing.gguf import of_gguf, rewritten

USES_NO_PROCESS = pytest.mark.usefixtures("converts_here")
Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
MIXTRAL = {
    "model_type": "mixtral",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def of(directory: Path) -> dict[str, Any]:
    return {"source": "path", "path": str(directory), "architecture": None}


def load(asked: dict[str, Any], recorder: Any) -> Any:
    prepared = loading.prepare(asked, recorder[0])
    return prepared, loading.load(prepared, asked, recorder[0])


@pytest.fixture
def split_gguf(tiny_gguf: Path, tmp_path: Path) -> Path:
    (tmp_path / "split").mkdir()
    return rewritten(tiny_gguf, tmp_path / "split" / "t.gguf", split=5)


def test_a_split_gguf_is_one_model_to_transformers(
    identity: Identity, recorder: Any, split_gguf: Path, tiny_gguf: Path
) -> None:
    assert split_gguf.name == "t-00001-of-00003.gguf"
    prepared, model = load(identity(model=of_gguf(split_gguf)), recorder)
    assert prepared.weights_digest == digest_files(gguf_files(split_gguf))
    _, whole = load(identity(model=of_gguf(tiny_gguf)), recorder)
    found, expected = model.state_dict(), whole.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_part_is_another_model(split_gguf: Path) -> None:
    before = digest_files(gguf_files(split_gguf))
    last = gguf_files(split_gguf)[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    assert digest_files(gguf_files(split_gguf)) != before


def test_a_split_gguf_weighs_all_of_its_parts(split_gguf: Path, tiny_gguf: Path) -> None:
    found, whole = formats.contents(split_gguf), formats.contents(tiny_gguf)
    assert found.weights_bytes == whole.weights_bytes
    assert found.parameters == whole.parameters
    assert found.config == whole.config


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="no wheel here")
def test_a_split_gguf_is_one_model_to_llamacpp(
    identity: Identity, run: Run, split_gguf: Path, tiny_gguf: Path
) -> None:
    sizes = {"prompt_tokens": 8, "new_tokens": 3}
    events = [
        run(identity(name, engine="llamacpp", model=of_gguf(file), **sizes))
        for file, name in ((split_gguf, "source"), (tiny_gguf, "source"), (split_gguf, "q8_0"))
    ]
    split, whole, made = events
    assert split.value("weights_bytes") == whole.value("weights_bytes")
    assert split.fact("output_digests") == whole.fact("output_digests")
    assert split.fact("weights_digest") == digest_files(gguf_files(split_gguf))
    assert split.fact("page_cache")["bytes"] == sum(
        file.stat().st_size for file in gguf_files(split_gguf)
    )
    assert made.fact("parameters") == whole.fact("parameters")


def test_parts_that_are_missing_or_not_the_first_are_named(split_gguf: Path) -> None:
    first, second, third = gguf_files(split_gguf)
    problem = find_problem(of_gguf(second))
    assert problem is not None
    assert "part 2 of 3" in problem.what
    assert first.name in problem.fix
    third.unlink()
    problem = find_problem(of_gguf(first))
    assert problem is not None
    assert third.name in problem.what
    with pytest.raises(InputError, match=third.name):
        formats.contents(first)


def test_a_part_under_another_name_is_not_taken_for_the_whole(
    split_gguf: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "model.gguf"
    shutil.copy(split_gguf, alone)
    with pytest.raises(InputError, match="the model has 3 files, its name 1"):
        formats.contents(alone)


@USES_NO_PROCESS
def test_a_tensor_that_no_model_has_is_named(
    identity: Identity, recorder: Any, tiny_gguf: Path, tmp_path: Path
) -> None:
    file = rewritten(tiny_gguf, tmp_path / "m.gguf", tensors={"blk.7.ffn_up.weight": [[1.0]]})
    with pytest.raises(InputError, match=r"no place for 1 tensors, for example blk\.7\.ffn_up"):
        loading.prepare(identity(model=of_gguf(file)), recorder[0])


def test_a_whole_file_comes_before_an_index(
    identity: Identity, recorder: Any, saved_model: Path
) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (saved_model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert directory_problem(saved_model) is None
    assert [file.name for file in weight_files(saved_model)] == ["model.safetensors"]
    prepared, _ = load(identity(model=of(saved_model)), recorder)
    assert prepared.weights_digest == digest_files([saved_model / "model.safetensors"])


def test_an_index_of_absent_shards_is_a_problem_while_planning(saved_model: Path) -> None:
    (saved_model / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (saved_model / "model.safetensors.index.json").write_text(json.dumps(index))
    problem = directory_problem(saved_model)
    assert problem is not None
    assert problem.where.endswith("model-00001-of-00002.safetensors")


@pytest.mark.parametrize("count", [1, 2])
def test_shards_without_an_index_are_loaded(
    identity: Identity, recorder: Any, saved_model: Path, count: int
) -> None:
    tensors = load_file(saved_model / "model.safetensors")
    (saved_model / "model.safetensors").unlink()
    names = sorted(tensors)
    for number in range(count):
        part = {name: tensors[name] for name in names[number::count]}
        file = saved_model / f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        save_file(part, file, metadata={"format": "pt"})
    before = sorted(saved_model.iterdir())
    prepared, model = load(identity(model=of(saved_model)), recorder)
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert prepared.weights_digest == digest_files(weight_files(saved_model))
    assert sorted(saved_model.iterdir()) == before
    assert recorder[1].fact("page_cache")["resident_fraction_before_load"] == 1.0
    assert recorder[1].engaged("checkpoint")["got"].startswith(f"{len(tensors)} tensors")
    weight_files(saved_model)[-1].unlink()
    problem = directory_problem(saved_model)
    assert problem is not None
    if count > 1:
        assert "of its shards is missing" in problem.what


def test_a_file_that_the_configuration_names_comes_first(
    identity: Identity, recorder: Any, saved_model: Path
) -> None:
    tensors = load_file(saved_model / "model.safetensors")
    other = {name: value * 2 for name, value in tensors.items()}
    save_file(other, saved_model / "named.safetensors", metadata={"format": "pt"})
    config = json.loads((saved_model / "config.json").read_text())
    config["transformers_weights"] = "named.safetensors"
    (saved_model / "config.json").write_text(json.dumps(config))
    prepared, model = load(identity(model=of(saved_model)), recorder)
    assert torch.equal(model.model.norm.weight, tensors["model.norm.weight"] * 2)
    assert prepared.weights_digest == digest_files([saved_model / "named.safetensors"])


def test_tensors_left_over_are_an_error(
    identity: Identity, recorder: Any, saved_model: Path
) -> None:
    config = json.loads((saved_model / "config.json").read_text())
    config["num_hidden_layers"] = 1
    (saved_model / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"no place for 9 tensors.*model\.layers\.1\.") as raised:
        load(identity(model=of(saved_model)), recorder)
    assert "\n" not in str(raised.value)


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    directory = tmp_path / "mixture"
    config = architecture.configuration(MIXTRAL)
    architecture.build(config, 0, "float32", "sdpa").save_pretrained(directory)
    return directory


def test_a_mixture_is_loaded_whole(identity: Identity, recorder: Any, mixture: Path) -> None:
    load(identity(model=of(mixture)), recorder)
    assert recorder[1].engaged("checkpoint")["ok"]


@pytest.mark.parametrize("change", ["one less", "half of one", "fewer meant"])
def test_a_mixture_with_other_experts_is_an_error(
    identity: Identity, recorder: Any, mixture: Path, change: str
) -> None:
    file = mixture / "model.safetensors"
    tensors = load_file(file)
    of_third = [name for name in tensors if ".experts.3." in name]
    assert len(of_third) == 3
    if change == "fewer meant":
        config = json.loads((mixture / "config.json").read_text())
        (mixture / "config.json").write_text(json.dumps({**config, "num_local_experts": 3}))
    else:
        for name in of_third if change == "one less" else of_third[:1]:
            del tensors[name]
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError) as raised:
        load(identity(model=of(mixture)), recorder)
    assert "\n" not in str(raised.value)


def test_every_file_that_is_read_is_named(saved_model: Path, split_gguf: Path) -> None:
    (saved_model / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (saved_model / "tokenizer.json").write_text("{}")
    (saved_model / "modeling_own.py").write_text("")
    (saved_model / "notes.txt").write_text("")

    def names(**more: Any) -> set[str]:
        return {file.name for file in content_files({**of(saved_model), **more}) or ()}

    read = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert names() == read
    assert names(trust_remote_code=True) == {*read, "modeling_own.py"}
    assert content_files(of_gguf(split_gguf)) == gguf_files(split_gguf)
    assert content_files({"source": "random"}) == []
    assert content_files({"source": "hub", "id": "a/b"}) is None


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="no wheel here")
@pytest.mark.parametrize("change", ["one more", "one less"])
def test_llamacpp_loads_no_file_with_other_tensors(
    identity: Identity, run: Run, tiny_gguf: Path, tmp_path: Path, change: str
) -> None:
    """On which its proof rests that all of a file was loaded."""
    if change == "one more":
        more = {"blk.7.ffn_up.weight": np.zeros((8, 8))}
        file = rewritten(tiny_gguf, tmp_path / "m.gguf", tensors=more)
    else:
        file = rewritten(tiny_gguf, tmp_path / "m.gguf", without="blk.0.ffn_up.weight")
    with pytest.raises(InputError, match=r"llama\.cpp cannot load this file"):
        run(
            identity(
                "source", engine="llamacpp", model=of_gguf(file), prompt_tokens=8, new_tokens=2
            )
        )


def test_a_file_is_looked_at_outside_of_the_measured_process(
    tiny_gguf: Path, recorder: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going through a vocabulary takes seconds and leaves a fragmented heap."""
    import gguf

    def read(*_: object) -> None:
        raise AssertionError("read in this process")

    here = os.getpid()
    real = gguf.GGUFReader.__init__
    monkeypatch.setattr(
        gguf.GGUFReader,
        "__init__",
        lambda *words: real(*words) if os.getpid() != here else read(),
    )
    directory = convert.converted(tiny_gguf, "0" * 64, recorder[0])
    assert (directory / "model.safetensors").is_file()
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[:-1])
    with pytest.raises(InputError, match="corrupt or truncated GGUF file"):
        convert.converted(tiny_gguf, "1" * 64, recorder[0])


@pytest.mark.usefixtures("converts_here")
@pytest.mark.parametrize("order", ["little", "big"])
def test_arrays_of_metadata_are_read_as_the_package_reads_them(tmp_path: Path, order: str) -> None:
    import gguf

    file = tmp_path / "arrays.gguf"
    endian = gguf.GGUFEndian.BIG if order == "big" else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(file, "llama", endianess=endian)
    writer.add_array("words", ["a", "", "ΔE", "last"])
    writer.add_array("counts", [3, -1, 7])
    writer.add_array("scores", [0.5, -2.0])
    writer.add_array("flags", [True, False])
    writer.add_array("nested", [["a", "b"], ["c"]])
    writer.add_string("after", "end")
    writer.add_tensor("t", np.ones((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plain = gguf.GGUFReader(file)
    ours = read_gguf(file)
    dequantise.read_once()
    assert gguf.GGUFReader(file) is gguf.GGUFReader(str(file))
    assert ours.fields.keys() == plain.fields.keys()
    for name, field in plain.fields.items():
        found = ours.fields[name]
        assert found.types == field.types, name
        # Element by element, as transformers takes them.
        assert [bytes(found.parts[i]) for i in found.data] == [
            bytes(field.parts[i]) for i in field.data
        ], name
        assert found.contents() == field.contents(), name
    assert [t.data_offset for t in ours.tensors] == [t.data_offset for t in plain.tensors]
