"""A directory that transformers finds its weights in, where the model's own lacks the index.

Shards of the usual names without ``model.safetensors.index.json`` say all that an index would say.
The user's directory is not written to: one of links, with an index made from the shards' headers,
stands in for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.digest import digest_json
from orchestrator.engines.inspection import tensor_types
from orchestrator.engines.source import SAFETENSORS_INDEX, named_weights

_VERSION = 1


def readable(directory: Path, files: Sequence[Path], digest: str) -> Path:
    """``directory`` itself, or one of links to all that is in it, with an index of ``files``.

    Parameters
    ----------
    digest : str
        Of the content of ``files``.
    """
    found = named_weights(directory)
    if found is None or found.indexed:
        return directory
    directory = directory.absolute()
    entries = sorted(entry.name for entry in directory.iterdir() if entry.is_file())
    key = digest_json(
        {"version": _VERSION, "directory": str(directory), "files": entries, "weights": digest}
    )

    def build(target: Path) -> None:
        target.mkdir()
        for name in entries:
            (target / name).symlink_to(directory / name)
        places = {name: file.name for file in files for name in tensor_types(file)}
        index = {"metadata": {}, "weight_map": places}
        (target / SAFETENSORS_INDEX).write_text(json.dumps(index))

    return publish(cache_root() / "indexed" / key[:32], build)
