"""GGUF files of tests: what a trial calls one, and copies with something changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.engines.gguf_files import GgufModel, copy_fields


def of_gguf(file: Path) -> dict[str, Any]:
    return {"source": "gguf", "path": str(file), "architecture": None}


def rewritten(
    source: Path,
    target: Path,
    fields: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    *,
    split: int = 0,
    without: str | None = None,
) -> Path:
    """A copy with more metadata and tensors, in files of ``split`` tensors each; the first file."""
    import gguf

    model = GgufModel(source)
    writer = gguf.GGUFWriter(target, "llama", split_max_tensors=split)
    copy_fields(model, writer, fields)
    kinds = {
        str: gguf.GGUFValueType.STRING,
        int: gguf.GGUFValueType.UINT32,
        bool: gguf.GGUFValueType.BOOL,
        list: gguf.GGUFValueType.ARRAY,
    }
    for name, value in (fields or {}).items():
        if name in model.fields:
            continue
        writer.add_key_value(name, value, kinds.get(type(value), gguf.GGUFValueType.FLOAT32))
    for tensor in model.tensors:
        if tensor.name != without:
            writer.add_tensor(tensor.name, tensor.data)
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, np.asarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target if not split else next(iter(sorted(target.parent.glob(f"{target.stem}-*"))))


def of_model(model: Any, target: Path, fields: Mapping[str, Any]) -> Path:
    """A transformers model as a GGUF file of the family that ``fields`` are of, with few tokens."""
    import gguf

    family = next(iter(fields)).partition(".")[0]
    (kind,) = (kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    writer = gguf.GGUFWriter(target, family)
    for name, value in fields.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(name, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(model.config.vocab_size)])
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        # Norms of some families are kept one less than what they multiply with.
        one = "norm" in name and family in ("gemma3", "nemotron") and name.endswith("weight")
        known = names.get_name(name, (".weight", ".bias"))
        writer.add_tensor(known, (tensor + 1 if one else tensor).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
