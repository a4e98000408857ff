"""How a GGUF file's tokenizer splits a text before it merges bytes, in transformers' words.

transformers knows some of the names that llama.cpp has for it (``tokenizer.ggml.pre``), and splits
as GPT-2 does under any other: the numbers in a text then become other tokens than the model was
trained on. These are llama.cpp's rules (``llama-vocab.cpp``); what has no equal here is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.engines.transformers.gguf_rope import NotKept

if TYPE_CHECKING:
    from orchestrator.engines.gguf_files import GgufModel

# Split as GPT-2 does. A file without a name is older than they are.
_AS_GPT2 = (
    *(None, "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat"),
    *("a.x-4.0", "mellum", "jina-v2-es", "jina-v2-de"),
)
# Each digit by itself, then as GPT-2 does.
_BY_DIGIT = ("smollm", "starcoder", "command-r", "refact", "codeshell", "exaone", "minerva-7b")


def apply_split(model: GgufModel, tokenizer: Any) -> None:
    """Have a transformers tokenizer that was made of ``model`` split as the file says.

    Raises
    ------
    NotKept
        Where transformers would split in another way.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    name = model.value("tokenizer.ggml.pre")
    if model.value("tokenizer.ggml.model") != "gpt2" or name in _AS_GPT2:
        return
    if name in _BY_DIGIT:
        # As such models' own tokenizer.json has it, which other engines read too.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    elif name not in GGUF_PRE_TOKENIZER_SPLITS:
        raise NotKept(f"transformers does not split a text as tokenizer.ggml.pre = {name} says")
