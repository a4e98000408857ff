"""What llama.cpp makes of a text by a GGUF file's tokenizer: other readers must make the same.

``python -m ….gguf_tokens GGUF OUT.json`` writes it for an environment that has no llama.cpp.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from orchestrator.engines.llamacpp.server import LlamaServer, Setting
from orchestrator.engines.separate import exits_for_a_full_disk, run_module
from orchestrator.engines.texts import PACKAGED_TEXT, begin_of_text, read_text

#: What tokenizers split in ways of their own: numbers, blanks (the first one, too), contractions.
PROBE = "In 1999, it wasn't 250 x1:\n\n    return 42  # two  blanks\n"
_CHARACTERS = 50_000


def probes() -> list[str]:
    """Texts on which readers of one tokenizer are compared."""
    return [PROBE, f" {PROBE}", read_text(PACKAGED_TEXT, _CHARACTERS)]


def tokens_of(file: Path) -> tuple[tuple[int, ...], list[list[int]]]:
    """What it puts before a text, and the ids of each of :func:`probes`.

    Raises
    ------
    InputError
        If llama.cpp cannot read the file.
    """
    small = {"threads": 1, "threads_batch": 1, "batch": 32, "micro_batch": 32, "gpu_layers": 0}
    caches = {"flash_attention": "auto", "cache_type_k": "f16", "cache_type_v": "f16"}
    setting = Setting(file, 1, 256, **small, **caches, mmap=True, mlock=False)  # type: ignore[arg-type]
    with closing(LlamaServer(setting)) as server:
        server.tokens([[0]], 1)  # one that is closed before its loop began never ends
        plain = [server.tokenize(each) for each in probes()]
        return begin_of_text(plain[0], server.tokenize(PROBE, special=True)), plain


def read_by_llamacpp(file: Path) -> tuple[tuple[int, ...], list[list[int]]]:
    """As :func:`tokens_of`, by a process of its own: llama.cpp does not survive a fork."""
    with tempfile.TemporaryDirectory() as place:
        answer = Path(place) / "tokens.json"
        run_module(
            "orchestrator.engines.gguf_tokens",
            file,
            answer,
            failed="llama.cpp cannot tell how this file's tokenizer reads",
            where=str(file),
            fix="Its log says why",
        )
        begin, plain = json.loads(answer.read_text())
    return tuple(begin), plain


def main(file: Path, target: Path) -> None:
    """Write what :func:`tokens_of` gives."""
    target.write_text(json.dumps(tokens_of(file)))


if __name__ == "__main__":
    exits_for_a_full_disk(main, Path(sys.argv[1]), Path(sys.argv[2]))
