"""What weights a number belongs to: a digest of their content, cheap to ask for again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator.engines.cache import cache_root, publish
from orchestrator.host.cpu import usable_cores

_CHUNK_BYTES = 1 << 22
_STAMP = ("path", "size", "mtime_ns", "ctime_ns", "ino")
_Stamp = tuple[str, int, int, int, int]
# Digests of this process, which a plan of thousands of trials asks for one model.
_KNOWN: dict[_Stamp, str] = {}


def digest_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 form, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_json(value: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON with sorted keys."""
    return digest_text(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False))


def ids_digest(ids: Sequence[int]) -> str:
    """SHA-256 of a sequence of token ids."""
    return digest_text(",".join(map(str, ids)))


def digest_files(files: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of ``files``, whatever order they are given in.

    A file's own digest is remembered under its path, size, inode and the times of its last
    modification and change, so a model is read through once, not once an attempt.
    """
    ordered = sorted(files, key=lambda file: file.name)
    seen = [_seen(file) for file in ordered]
    if all(each in _KNOWN for each in seen):
        digests = [_KNOWN[each] for each in seen]
    else:
        # hashlib lets other threads run while it reads a large block.
        with ThreadPoolExecutor(max_workers=len(usable_cores())) as pool:
            digests = list(pool.map(_digest_file, ordered))
        _KNOWN.update(zip(seen, digests, strict=True))
    lines = [f"{file.name} {digest}" for file, digest in zip(ordered, digests, strict=True)]
    return digest_text("\n".join(lines))


def _seen(file: Path) -> _Stamp:
    """Where all of it is as it was, so is the content.

    Unpacking another checkpoint of the same sizes can leave the rest alike: archives set the time
    of modification, and a file system gives a freed inode away again. Nobody sets the time of the
    last change.
    """
    found = file.stat()
    times = found.st_mtime_ns, found.st_ctime_ns
    return os.path.realpath(file), found.st_size, *times, found.st_ino


def _digest_file(file: Path) -> str:
    path = file.resolve()
    key = digest_json(dict(zip(_STAMP, _seen(file), strict=True)))

    def compute(target: Path) -> None:
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(_CHUNK_BYTES):
                digest.update(block)
        target.write_text(json.dumps({"path": str(path), "sha256": digest.hexdigest()}))

    entry = publish(cache_root() / "digests" / f"{key}.json", compute)
    return str(json.loads(entry.read_text())["sha256"])
