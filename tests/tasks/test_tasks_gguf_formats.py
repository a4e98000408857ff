"""GGUF files written in every format, and what a file is said to hold."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines import gguf_formats as formats
from orchestrator.engines import gguf_requantize as requantize
from orchestrator.engines.llamacpp.expected import GGUF_MADE, GGUF_TYPE
from orchestrator.engines.registry import expect
from orchestrator.measure import Infeasible, InputError
from orchestrator.measure.registry import find_task
from testing.checks import check_of
from testing.gguf import of_gguf

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
check = check_of("inference")
needs_llamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp has no wheel here"
)


@pytest.mark.parametrize("name", formats.WRITTEN)
def test_every_format_is_written_and_close_to_its_source(
    tiny_gguf: Path, tmp_path: Path, name: str
) -> None:
    import gguf
    import numpy as np
    from gguf import quants

    target = tmp_path / f"{name}.gguf"
    kind = formats.WRITTEN[name]
    requantize.main(tiny_gguf, target, kind)
    found = formats.contents(target)
    assert found.vocabulary == 256
    assert found.layers == 1
    embeddings = 0 if kind in ("F32", "F16", "BF16", "Q8_0") else 2
    assert found.types["F32"] == (12 if kind == "F32" else 3)  # the vectors
    assert found.types[kind] == (12 if kind == "F32" else 9 - embeddings)
    if embeddings:
        assert found.types["Q8_0"] == embeddings
    before = {t.name: t for t in gguf.GGUFReader(tiny_gguf).tensors}
    for tensor in gguf.GGUFReader(target).tensors:
        source = np.asarray(before[tensor.name].data)
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        assert values.shape == source.shape
        error = np.linalg.norm(values - source) / np.linalg.norm(source)
        assert error < (0.01 if tensor.tensor_type.name in ("F32", "F16", "BF16", "Q8_0") else 0.2)


def test_a_format_is_made_once_and_kept_whole(tiny_gguf: Path, cache: Path) -> None:
    made = formats.in_format(tiny_gguf, "ab" * 32, "Q4_0")
    stamp = made.stat().st_mtime_ns
    assert formats.in_format(tiny_gguf, "ab" * 32, "Q4_0") == made
    assert made.stat().st_mtime_ns == stamp
    assert [p.name for p in made.parent.iterdir()] == [made.name]
    assert formats.in_format(tiny_gguf, "ab" * 32, None) == tiny_gguf
    # Most of it is in this format already.
    assert formats.in_format(tiny_gguf, "ab" * 32, "F32") == tiny_gguf
    with pytest.raises(Infeasible, match="most of this file is F32, and Q4_K is not written"):
        formats.in_format(tiny_gguf, "ab" * 32, "Q4_K")


@pytest.mark.parametrize(
    ("held", "name", "words"),
    [
        ({"Q5_0": 9, "Q8_0": 3}, "m-Q4_K_M.gguf", "layers mostly Q5_0, not Q4_K as it is called"),
        ({"Q5_0": 9}, "m.q4_k_s-00001-of-00002.gguf", "layers in Q5_0, not Q4_K as it is called"),
        ({"Q4_K": 9, "Q6_K": 3}, "m-Q4_K_M.gguf", "layers mostly Q4_K"),
        ({"IQ3_S": 9}, "m-IQ3_M.gguf", "layers in IQ3_S"),
        ({"Q4_1": 9}, "m-q4f16.gguf", "layers in Q4_1"),
        ({"F16": 9}, "BF16M-F16.gguf", "layers in F16"),
        ({"F16": 9}, "m-BF16.gguf", "layers in F16, not BF16 as it is called"),
        ({}, "m.gguf", "layers in F32"),
    ],
)
def test_a_file_is_named_by_what_its_layers_are(
    tiny_gguf: Path, held: dict[str, int], name: str, words: str
) -> None:
    found = dataclasses.replace(formats.contents(tiny_gguf), matrix_elements=held)
    assert found.words(name) == words


@needs_llamacpp
def test_a_row_of_another_type_than_its_name_says_so(
    identity: Identity, run: Run, tiny_gguf: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tiny-Q8_0.gguf"
    requantize.main(tiny_gguf, file, "Q4_0")
    found = formats.contents(file)
    # Embeddings and output head are Q8_0, and as large as a layer or two.
    assert found.types["Q8_0"] == 2
    assert found.matrix_type == "Q4_0"
    events = run(
        identity("source", engine="llamacpp", model=of_gguf(file), prompt_tokens=8, new_tokens=2)
    )
    assert events.fact("gguf_layers") == "layers in Q4_0, not Q8_0 as it is called"
    assert "gguf_layers" in find_task("inference").named


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


@pytest.mark.parametrize("name", formats.WRITTEN)
def test_expected_weights_are_those_of_the_file_that_is_made(
    identity: Identity, tiny_gguf: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "made.gguf"
    requantize.main(tiny_gguf, target, formats.WRITTEN[name])
    found = formats.contents(target)
    assert found.config is not None
    asked = identity(
        quant=name,
        engine="llamacpp",
        model=of_gguf(tiny_gguf),
        cache_type_v="q8_0",
        prompt_tokens=128,
        new_tokens=64,
    )
    expected = expect(asked, {**found.config, GGUF_TYPE: found.matrix_type, GGUF_MADE: True})
    assert expected is not None
    assert expected.sizes_bytes["weights_bytes"] == found.weights_bytes
    # One layer of two key/value heads of 16, keys in 16 bits, values in 34 bytes for 32.
    assert expected.sizes_bytes["kv_bytes"] == 256 * 2 * 16 * (2 + 34 / 32)
    for operation in expected.made_steps()["tpot_s"].eager:
        assert operation.launches == 0
        plain = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        assert operation.dtype in (plain.get(name, "int8"), "float32")
