"""The token ids that tasks feed to a model: seeded random prompts, and text for quality."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engines.digest import digest_text
from orchestrator.engines.transformers import Prepared
from orchestrator.errors import one_line
from orchestrator.measure import InputError

if TYPE_CHECKING:
    import torch

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
# Text read for each token wanted: no language comes near so many characters a token.
_CHARACTERS_A_TOKEN = 64
_PROBE = "a text"
# Of a text in a language that a tokenizer was made for, next to nothing is unknown to it.
_MOST_UNKNOWN = 0.5


def prompt(prepared: Prepared, seed: int, batch_size: int, length: int) -> torch.Tensor:
    """Seeded random token ids, never special ones: (batch_size, length), int64, on the CPU.

    An end-of-text or padding id inside a prompt would be treated unlike text by some models.
    """
    import torch

    allowed = torch.tensor(_ordinary_ids(prepared))
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(allowed), (batch_size, length), generator=generator)
    return allowed[picks]


def has_tokenizer(prepared: Prepared) -> bool:
    """Whether the model came with a tokenizer; random weights have none."""
    directory = prepared.directory
    return directory is not None and any((directory / name).is_file() for name in _TOKENIZER_FILES)


def load_tokenizer(prepared: Prepared, *, trust_remote_code: bool) -> Any:
    """The model's tokenizer, or a line why there is none."""
    from transformers import AutoTokenizer

    directory = prepared.directory
    if directory is None:
        return "this model has no tokenizer to read a text with"
    if not has_tokenizer(prepared):
        others = sorted(file.name for file in directory.glob("*tekken*"))
        if not others:
            return "this model has no tokenizer to read a text with"
        return f"this model's tokenizer, {others[0]}, is of a kind that is not read here"
    try:
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # tokenizers raise types of their own
        return f"this model's tokenizer cannot be read: {one_line(error)}"


def begin_of_text(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer itself puts before a text: mostly one, or none."""
    plain = tokenizer(_PROBE, add_special_tokens=False, verbose=False)["input_ids"]
    full = tokenizer(_PROBE, add_special_tokens=True, verbose=False)["input_ids"]
    # From the end: what stands before a text may be one of its own tokens too.
    for start in range(len(full) - len(plain), -1, -1):
        if full[start : start + len(plain)] == plain:
            return [int(i) for i in full[:start]]
    return []


def text_ids(tokenizer: Any, prepared: Prepared, name: str, count: int) -> list[int]:
    """The first ``count`` token ids of a text, without special tokens.

    Parameters
    ----------
    tokenizer : tokenizer
        As :func:`load_tokenizer` gives it.
    name : str
        As :func:`read_text` takes it.

    Raises
    ------
    InputError
        If the text cannot be used or is too short, or the tokenizer is another model's.
    """
    text = read_text(name, count * _CHARACTERS_A_TOKEN)
    try:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    except Exception as error:  # tokenizers raise types of their own
        raise InputError(
            f"the tokenizer cannot be used: {one_line(error)}", where=str(prepared.directory)
        ) from error
    if len(ids) < count:
        raise InputError(
            f"the text has {len(ids)} tokens, {count} are needed",
            where=f"task.text={name}",
            fix="Give a longer text or fewer quality tokens",
        )
    ids = [int(i) for i in ids[:count]]
    refuse_foreign(ids, int(prepared.config.get_text_config(decoder=True).vocab_size))
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and ids.count(unknown) > _MOST_UNKNOWN * count:
        raise InputError(
            f"the tokenizer knows {count - ids.count(unknown)} of {count} tokens of this text",
            where=str(prepared.directory),
            fix="The tokenizer's files must belong to the model; or give another task.text",
        )
    return ids


def refuse_foreign(ids: Sequence[int], vocabulary: int) -> None:
    """:class:`InputError` where ids lie past the end of the embedding."""
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        raise InputError(
            f"the tokenizer gives the id {max(ids)}, the model has {vocabulary} embeddings",
            where="model",
            fix="The tokenizer's files must belong to the model",
        )


def read_text(name: str, characters: int) -> str:
    """The beginning of a text.

    Parameters
    ----------
    name : str
        ``pydoc_topics`` (Python's own language reference, on every machine; it changes from one
        Python version to the next, so its digest belongs to the result), a ``.txt`` or
        ``.parquet`` file (its ``text`` column), or ``hub:OWNER/NAME/FILE`` for a file of a dataset
        on the Hugging Face hub.
    characters : int
        Most characters to return.

    Raises
    ------
    InputError
        If there is no such text.
    """
    if name == "pydoc_topics":
        from pydoc_data.topics import topics

        return "\n\n".join(topics[key] for key in sorted(topics))[:characters]
    file = _dataset_file(name) if name.startswith("hub:") else Path(name).expanduser()
    if not file.is_file():
        raise InputError(
            "no such text",
            where=f"task.text={name}",
            fix="Use pydoc_topics, random, a .txt or .parquet file, or hub:OWNER/NAME/FILE",
        )
    try:
        if file.suffix == ".parquet":
            return _parquet_text(file, characters)
        with file.open(encoding="utf-8") as stream:
            return stream.read(characters)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"this text cannot be read: {one_line(error)}", where=str(file)) from error


def ids_digest(ids: list[int]) -> str:
    """SHA-256 of a sequence of token ids."""
    return digest_text(",".join(map(str, ids)))


def output_digest(steps: list[torch.Tensor]) -> str:
    """16 hex digits of the ids that a generation gave, step by step, (batch, 1) each."""
    import torch

    return ids_digest(torch.cat(steps, dim=-1).flatten().tolist())[:16]


def _ordinary_ids(prepared: Prepared) -> list[int]:
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


def _parquet_text(file: Path, characters: int) -> str:
    import pyarrow.parquet

    rows: list[str] = []
    length = 0
    parquet = pyarrow.parquet.ParquetFile(file)
    if "text" not in parquet.schema_arrow.names:
        raise ValueError("it has no column 'text'")
    for batch in parquet.iter_batches(columns=["text"]):
        for row in batch.column(0).to_pylist():
            rows.append(row or "")
            length += len(rows[-1]) + 1
            if length >= characters:
                return "\n".join(rows)[:characters]
    return "\n".join(rows)


def _dataset_file(name: str) -> Path:
    from huggingface_hub import errors, hf_hub_download

    parts = name.removeprefix("hub:").split("/", 2)
    if len(parts) != 3:
        raise InputError("not a file of a dataset", where=name, fix="Write hub:OWNER/NAME/FILE")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset"))
    except (errors.EntryNotFoundError, errors.HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            f"the dataset cannot be fetched: {one_line(error)}",
            where=name,
            fix="Check its name, go online, or use a local file",
        ) from error
