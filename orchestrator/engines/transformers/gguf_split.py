"""A GGUF file's tokenizer in transformers: it makes of a text what llama.cpp makes of it.

transformers knows some of the names that llama.cpp has for how a text is split before bytes are
merged (``tokenizer.ggml.pre``), and splits as GPT-2 does under any other; it leaves out what stands
before a text, and whether a blank does, where the file leaves that to llama.cpp. What is known of
this is set here, and the result compared; what is not the same is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engines.gguf_tokens import PROBE, probes, read_by_llamacpp
from orchestrator.engines.texts import begin_of_text
from orchestrator.engines.transformers.gguf_rope import NotKept

if TYPE_CHECKING:
    from orchestrator.engines.gguf_files import GgufModel

# Of a file that names none; one after the other.
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
# Each digit by itself, then as GPT-2 does.
_BY_DIGIT = ("smollm", "starcoder", "command-r", "refact", "codeshell", "exaone", "minerva-7b")


def apply_split(file: Path, model: GgufModel, tokenizer: Any) -> None:
    """Have a transformers tokenizer that was made of ``file`` read a text as llama.cpp does.

    Raises
    ------
    NotKept
        Where transformers would read in another way.
    InputError
        If llama.cpp cannot read the file.
    """
    from tokenizers import Regex
    from tokenizers.normalizers import Prepend, Replace, Sequence
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Split
    from tokenizers.pre_tokenizers import Sequence as Steps

    kind, name = (model.value(f"tokenizer.ggml.{field}") for field in ("model", "pre"))
    backend = tokenizer.backend_tokenizer
    if kind == "gpt2" and name in _BY_DIGIT:
        # As such models' own tokenizer.json has it, which other engines read too.
        backend.pre_tokenizer = Steps(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    elif kind == "gpt2" and name in (None, "default"):
        splits = [Split(Regex(each), "isolated") for each in _DEFAULT]
        backend.pre_tokenizer = Steps([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
    elif kind == "llama":
        prefix = model.value("tokenizer.ggml.add_space_prefix")
        before = [] if prefix is False else [Prepend("\u2581")]
        backend.normalizer, backend.pre_tokenizer = (
            Sequence([*before, Replace(" ", "\u2581")]),
            None,
        )

    def encode(text: str, special: bool = False) -> list[int]:
        return [int(i) for i in tokenizer(text, add_special_tokens=special)["input_ids"]]

    begin, expected = read_by_llamacpp(file)
    for text, theirs in zip(probes(), expected, strict=True):
        if encode(text) != theirs:
            raise NotKept(
                f"transformers does not split a text as llama.cpp does (tokenizer.ggml.model = "
                f"{kind}, tokenizer.ggml.pre = {name})"
            )
    if begin == (tokenizer.bos_token_id,):
        tokenizer.add_bos_token = True
    if (found := begin_of_text(expected[0], encode(PROBE, special=True))) != begin:
        raise NotKept(f"transformers begins a text with {found}, llama.cpp with {begin}")
