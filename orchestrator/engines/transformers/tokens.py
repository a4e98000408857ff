"""Token ids of a transformers model: seeded random prompts, and its own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engines.texts import begin_of_text, random_prompt
from orchestrator.engines.tokenizer import Tokenizer
from orchestrator.engines.transformers.dequantise import NO_TOKENIZER
from orchestrator.engines.transformers.load import Prepared
from orchestrator.errors import one_line
from orchestrator.measure import InputError

if TYPE_CHECKING:
    import torch

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_PROBE = "a text"
# Long enough for a tokenizer that leaves out merges by chance (dropout) to do so.
_LONG_PROBE = "texts of several different words and syllables " * 40


def prompt(prepared: Prepared, seed: int, batch_size: int, length: int) -> torch.Tensor:
    """Seeded random token ids, never special ones: (batch_size, length), int64, on the CPU."""
    import torch

    return torch.tensor(random_prompt(ordinary_ids(prepared), seed, batch_size, length))


def load_tokenizer(prepared: Prepared, *, trust_remote_code: bool) -> Tokenizer | str:
    """The model's tokenizer, or a line why there is none."""
    from transformers import AutoTokenizer

    directory = prepared.directory
    if directory is None:
        return "this model has no tokenizer to read a text with"
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        if (why := directory / NO_TOKENIZER).is_file():
            return f"this file's tokenizer cannot be converted: {why.read_text(encoding='utf-8')}"
        others = sorted(file.name for file in directory.glob("*tekken*"))
        if not others:
            return "this model has no tokenizer to read a text with"
        return f"this model's tokenizer, {others[0]}, is of a kind that is not read here"
    try:
        found = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )

        def encode(text: str, special: bool = False) -> list[int]:
            ids = found(text, add_special_tokens=special, verbose=False)["input_ids"]
            return [int(i) for i in ids]

        plain = _own_encoder(directory, found) or encode
        if plain(_LONG_PROBE) != plain(_LONG_PROBE):
            return (
                "this model's tokenizer reads the same text differently each time: it has a dropout"
            )
        begin = getattr(found, "bos_token_id", None)
        return Tokenizer(
            plain,
            begin_of_text(encode(_PROBE), encode(_PROBE, special=True)),
            getattr(found, "unk_token_id", None),
            getattr(found, "eos_token_id", None) if begin is None else begin,
            lambda ids: str(found.decode(ids, skip_special_tokens=True)),
            _end_ids(prepared, directory, getattr(found, "eos_token_id", None)),
        )
    except Exception as error:  # tokenizers raise types of their own
        return f"this model's tokenizer cannot be read: {one_line(error)}"


def _own_encoder(directory: Path, found: Any) -> Callable[[str], list[int]] | None:
    """What ``tokenizer.json`` itself makes of a text, where ``found`` is transformers' form of it.

    transformers 5 takes vocabulary and merges from it for many classes (``GPT2Tokenizer``), and
    normalizes and splits a text as the class does, whatever the file says. None without the file.
    """
    from tokenizers import Tokenizer as OfFile

    file = directory / "tokenizer.json"
    if not file.is_file() or not type(found).__module__.startswith("transformers."):
        return None
    own = OfFile.from_file(str(file))
    own.no_truncation()
    own.no_padding()
    return lambda text: [int(i) for i in own.encode(text, add_special_tokens=False).ids]


def _end_ids(prepared: Prepared, directory: Path, own: int | None) -> tuple[int, ...]:
    """Those at which transformers' own ``generate`` ends, and the tokenizer's ``own``."""
    file = directory / "generation_config.json"
    if file.is_file():
        ends = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    else:
        ends = getattr(prepared.config.get_text_config(decoder=True), "eos_token_id", None)
    found = [own, *(ends if isinstance(ends, list) else [ends])]
    return tuple(dict.fromkeys(int(i) for i in found if i is not None))


def rows_of(steps: list[torch.Tensor]) -> tuple[tuple[int, ...], ...]:
    """Ids of each row of a generation, which gave them step by step, (batch, 1) each."""
    import torch

    return tuple(map(tuple, torch.cat(steps, dim=-1).tolist()))


def ordinary_ids(prepared: Prepared) -> list[int]:
    """Ids of the tokens that are text, in order."""
    config: Any = prepared.config.get_text_config(decoder=True)
    special: set[int] = set()
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id"):
        value = getattr(config, key, None)
        special.update(value if isinstance(value, list) else [value] if value is not None else [])
    size = int(config.vocab_size)
    file = prepared.directory / "tokenizer.json" if prepared.directory else None
    if file is not None and file.is_file():
        try:
            tokenizer = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:  # said where a text is to be read with it
            tokenizer = {}
        added = tokenizer.get("added_tokens") or []
        special.update(token["id"] for token in added if token.get("special"))
        known = (tokenizer.get("model") or {}).get("vocab")
        if known:  # the embedding may be padded past the last real token
            size = min(size, len(known) + len(added))
    ordinary = [token for token in range(size) if token not in special]
    if not ordinary:
        raise InputError("the vocabulary has no ordinary tokens", where="model")
    return ordinary
