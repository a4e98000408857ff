"""The token ids that tasks feed to a model: seeded random prompts, and texts, on any engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.engines.content import hub_errors
from orchestrator.engines.port import Prompt, Session
from orchestrator.engines.tokenizer import Tokenizer
from orchestrator.errors import OrchestratorError, one_line
from orchestrator.measure import ConfigError, InputError

#: Python's own language reference, on every machine.
PACKAGED_TEXT = "pydoc_topics"
_HUB = "hub:"
# Text read for each token wanted: no language comes near so many characters a token.
_CHARACTERS_A_TOKEN = 64
# Of a text in a language that a tokenizer was made for, next to nothing is unknown to it.
_MOST_UNKNOWN = 0.5


def random_prompt(ids: Sequence[int], seed: int, batch_size: int, length: int) -> list[list[int]]:
    """Seeded random ids out of ``ids``, the tokens that are text: ``batch_size`` rows.

    An end-of-text or padding id inside a prompt would be treated unlike text by some models.
    """
    import numpy as np

    if not ids:
        raise InputError("the vocabulary has no ordinary tokens", where="model")
    picks = np.random.default_rng(seed).integers(len(ids), size=(batch_size, length))
    found: list[list[int]] = np.asarray(ids)[picks].tolist()
    return found


def text_prompt(session: Session, name: str, batch_size: int, length: int) -> Prompt:
    """Consecutive pieces of a text, ``batch_size`` rows, each with begin-of-text where it belongs.

    Parameters
    ----------
    name : str
        As :func:`read_text` takes it.

    Raises
    ------
    InputError
        If the model has no tokenizer, or as :func:`text_ids`.
    """
    tokenizer = session.tokenizer()
    if isinstance(tokenizer, str):
        raise InputError(tokenizer, where="task.prompt", fix="Use task.prompt=random")
    begin = list(tokenizer.begin_of_text)[:length]
    piece = length - len(begin)
    ids = text_ids(tokenizer, session.vocabulary, name, batch_size * piece, where="task.prompt")
    return [[*begin, *ids[row * piece : (row + 1) * piece]] for row in range(batch_size)]


def text_ids(
    tokenizer: Tokenizer, vocabulary: int, name: str, count: int, *, where: str
) -> list[int]:
    """The first ``count`` token ids of a text, without special tokens.

    Raises
    ------
    InputError
        If the text cannot be used or is too short, or the tokenizer is another model's.
    """
    text = read_text(name, count * _CHARACTERS_A_TOKEN, where=where)
    ids = encoded(tokenizer, vocabulary, text, where=where, most=count)
    if len(ids) < count:
        raise InputError(
            f"the text has {len(ids)} tokens, {count} are needed",
            where=f"{where}={name}",
            fix="Give a longer text or ask for fewer tokens",
        )
    return ids


def encoded(
    tokenizer: Tokenizer, vocabulary: int, text: str, *, where: str, most: int | None = None
) -> list[int]:
    """Token ids of a text, without special tokens; the first ``most`` of them.

    Raises
    ------
    InputError
        If the tokenizer is another model's.
    """
    try:
        ids = tokenizer.encode(text)[:most]
    except Exception as error:  # tokenizers raise types of their own
        raise InputError(
            f"the tokenizer cannot be used: {one_line(error)}", where="model"
        ) from error
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        strange = max(ids) if max(ids) >= vocabulary else min(ids)
        raise InputError(
            f"the tokenizer gives the id {strange}, the model has {vocabulary} embeddings",
            where="model",
            fix="The tokenizer's files must belong to the model",
        )
    unknown = tokenizer.unknown_id
    if unknown is not None and ids.count(unknown) > _MOST_UNKNOWN * len(ids):
        known = len(ids) - ids.count(unknown)
        raise InputError(
            f"the tokenizer knows {known} of {len(ids)} tokens of this text",
            where="model",
            fix=f"The tokenizer's files must belong to the model; or give another {where}",
        )
    return ids


def read_text(name: str, characters: int, *, where: str = "task.text") -> str:
    """The beginning of a text.

    Parameters
    ----------
    name : str
        ``pydoc_topics`` (it changes from one Python version to the next, so its digest belongs to
        the result), a ``.txt`` or ``.parquet`` file (its ``text`` column), or
        ``hub:OWNER/NAME/FILE`` for a file of a dataset on the Hugging Face hub.
    characters : int
        Most characters to return.

    Raises
    ------
    InputError
        If there is no such text.
    """
    if name == PACKAGED_TEXT:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[key] for key in sorted(topics))[:characters]
    file = _dataset_file(name) if name.startswith(_HUB) else _text_file(name, where)
    try:
        if file.suffix == ".parquet":
            return _parquet_text(file, characters)
        # Without a byte order mark, which would be tokens of the text.
        with file.open(encoding="utf-8-sig") as stream:
            return stream.read(characters)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"this text cannot be read: {one_line(error)}", where=str(file)) from error


def check_text(name: str, *, where: str) -> None:
    """:class:`ConfigError` if a text's file is not there; the hub is not asked."""
    if name != PACKAGED_TEXT and not name.startswith(_HUB):
        _text_file(name, where, ConfigError)


def _text_file(name: str, where: str, error: type[OrchestratorError] = InputError) -> Path:
    file = Path(name).expanduser()
    if file.is_file():
        return file
    raise error(
        "no such text",
        where=f"{where}={name}",
        fix=f"Use {PACKAGED_TEXT}, random, a .txt or .parquet file, or hub:OWNER/NAME/FILE",
    )


def begin_of_text(plain: Sequence[int], full: Sequence[int]) -> tuple[int, ...]:
    """What a tokenizer put before a text: of its ids without special tokens and with them."""
    # From the end: what stands before a text may be one of its own tokens too.
    for start in range(len(full) - len(plain), -1, -1):
        if list(full[start : start + len(plain)]) == list(plain):
            return tuple(int(i) for i in full[:start])
    return ()


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

    parts = name.removeprefix(_HUB).split("/", 2)
    if len(parts) != 3:
        raise InputError("not a file of a dataset", where=name, fix="Write hub:OWNER/NAME/FILE")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset"))
    except hub_errors(errors.EntryNotFoundError, ValueError) as error:
        raise InputError(
            f"the dataset cannot be fetched: {one_line(error)}",
            where=name,
            fix="Check its name, go online, or use a local file",
        ) from error
