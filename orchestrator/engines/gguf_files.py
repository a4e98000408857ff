"""GGUF models of one file or of several: which files they are, and their contents as one.

A model that was split lies in ``NAME-00001-of-00003.gguf`` and so on; the first holds the metadata,
each some of the tensors, and how many there are stands in each (``split.count``). llama.cpp finds
the others by the first one's name.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.measure import InputError

_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_COUNT, _TENSORS = "split.count", "split.tensors.count"
SPLIT_FIELDS = ("split.no", _COUNT, _TENSORS)


@dataclass(frozen=True)
class Split:
    """What a file's name says of its part in a split model.

    Attributes
    ----------
    number, count : int
        Which one it is, from 1, and of how many.
    files : tuple of Path
        All of them, there or not.
    """

    number: int
    count: int
    files: tuple[Path, ...]


def split_of(file: Path) -> Split | None:
    """By the name alone; None for a model of one file."""
    found = _SPLIT.fullmatch(file.name)
    if found is None or (count := int(found["count"])) < 2:
        return None
    names = (f"{found['stem']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1))
    return Split(int(found["number"]), count, tuple(file.with_name(name) for name in names))


def gguf_files(file: Path) -> list[Path]:
    """All files of the model that begins with ``file``.

    Raises
    ------
    InputError
        If one is missing, or ``file`` is not the first.
    """
    split = split_of(file)
    if split is None:
        return [file]
    if why := split_problem(split):
        raise InputError(why[0], where=str(file), fix=why[1])
    return list(split.files)


def split_problem(split: Split) -> tuple[str, str] | None:
    """What is wrong, and what to do about it."""
    if split.number != 1:
        return (
            f"it is part {split.number} of {split.count} of a split GGUF model",
            f"Name the first one: {split.files[0].name}",
        )
    missing = [file.name for file in split.files if not file.is_file()]
    if missing:
        return (
            f"a split GGUF model of {split.count} files lacks {len(missing)}: {missing[0]}",
            "Fetch all of them into one directory",
        )
    return None


class GgufModel:
    """Metadata and tensors of a model, however many files it lies in.

    Attributes
    ----------
    files : list of Path
    fields : dict
        As ``gguf.GGUFReader`` has them, of the first file.
    tensors : list
        Of all files, in order.

    Raises
    ------
    InputError
        If files are missing or do not belong together.
    """

    def __init__(self, file: Path) -> None:
        self.files = gguf_files(file)
        readers = [read_gguf(each) for each in self.files]
        self.fields: dict[str, Any] = dict(readers[0].fields)
        self.tensors: list[Any] = [tensor for reader in readers for tensor in reader.tensors]
        check_parts(self.files, self.fields, len(self.tensors))

    def value(self, name: str) -> Any:
        """Of one field of metadata; None where it is not there."""
        return _value(self.fields, name)


def read_gguf(file: Path) -> Any:
    """A ``gguf.GGUFReader`` of one file, whose tensors are mapped and not read."""
    return _reader_class()(file)


@cache
def _reader_class() -> Any:
    """The package's reader, but for what makes it take seconds over a vocabulary."""
    import numpy as np
    from gguf import GGUFValueType as Kind
    from gguf.gguf_reader import GGUFReader

    class Reader(GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            # Slicing a memmap makes another memmap: ten times what slicing an array takes.
            self._plain = np.asarray(mapped)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            # A vocabulary is an array of 50,000 strings and more; the reader makes five views of
            # each and adds up their sizes. The lengths of strings, which nobody asks for, are
            # left out here.
            if raw_type != Kind.ARRAY or self.byte_order != "I":
                return super()._get_field_parts(orig_offs, raw_type)
            item, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            number, at = int(count[0]), orig_offs + 12
            if item[0] == Kind.STRING:
                length_at = struct.Struct("=Q").unpack_from
                parts = []
                for _ in range(number):
                    (length,) = length_at(self.data, at)
                    parts.append(self.data[at + 8 : at + 8 + length])
                    at += 8 + length
            elif item[0] in self.gguf_scalar_to_np:
                values = self._get(at, self.gguf_scalar_to_np[item[0]], number)
                parts = [values[index : index + 1] for index in range(number)]
                at += values.nbytes
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            types = [Kind.ARRAY, *([Kind(item[0])] if number else [])]
            return at - orig_offs, [item, count, *parts], [*range(2, 2 + number)], types

    return Reader


def check_parts(files: list[Path], fields: Mapping[str, Any], tensors: int) -> None:
    """:class:`InputError` where ``files`` with so many ``tensors`` are not the whole of one model.

    Parameters
    ----------
    fields : mapping
        Metadata of the first.
    """
    count = int(_value(fields, _COUNT) or 1)
    if count != len(files):
        raise InputError(
            f"its metadata says that the model has {count} files, its name {len(files)}",
            where=str(files[0]),
            fix="Keep the names that it was split into: NAME-00001-of-00002.gguf",
        )
    meant = _value(fields, _TENSORS)
    if meant is not None and int(meant) != tensors:
        raise InputError(
            f"the model has {meant} tensors, its files {tensors}",
            where=str(files[0]),
            fix="Fetch all files again",
        )


def _value(fields: Mapping[str, Any], name: str) -> Any:
    found = fields.get(name)
    return None if found is None else found.contents()


def write_whole(model: GgufModel, target: Path) -> None:
    """Write a split model as one file, its tensors as they lie."""
    import gguf

    writer = gguf.GGUFWriter(target, str(model.value("general.architecture")))
    copy_fields(model, writer)
    for tensor in model.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_fields(model: GgufModel, writer: Any, changed: Mapping[str, Any] | None = None) -> None:
    """Copy metadata to a ``gguf.GGUFWriter``, but for what is ``changed``, by name."""
    import gguf

    new = changed or {}
    for field in model.fields.values():
        # The writer has these from its own arguments, and what is written is one file.
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if field.name in SPLIT_FIELDS:
            continue
        value = new.get(field.name, field.contents())
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub_type=inner)
