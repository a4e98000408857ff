"""A GGUF file's sizes as a Hugging Face configuration, for the arithmetic of what is expected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.engines.gguf_files import GgufModel

# Families whose sizes a GGUF file tells under the same few names; Mistral's files say "llama".
_FAMILIES = ("llama", "qwen2", "qwen3")
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}


def configuration_of(reader: GgufModel) -> dict[str, Any] | None:
    """The configuration; None for a family that is not known here, or a file that lacks a size."""
    family = reader.value("general.architecture")
    if family not in _FAMILIES or reader.value(f"{family}.expert_count"):
        return None
    sizes = {name: reader.value(f"{family}.{field}") for name, field in _SIZES.items()}
    if not all(isinstance(size, int) for size in sizes.values()):
        return None
    names = {tensor.name for tensor in reader.tensors}
    width = reader.value(f"{family}.attention.key_length")
    return {
        "model_type": family,
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        **sizes,
        "head_dim": width or sizes["hidden_size"] // sizes["num_attention_heads"],
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_q.bias" in names,
    }
