"""Has a GGUF file turned into safetensors and a tokenizer, once, in a process of its own.

A measured process that had just dequantised a model would start with warm kernels, a fragmented
heap and a higher peak than the next one, which finds the conversion in the cache; so it happens
elsewhere (``dequantise.py``).
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.separate import in_own_python, own_version, run_forked, run_module
from orchestrator.engines.transformers import dequantise
from orchestrator.measure import Recorder

# Part of the cache key: raise it when the same file would convert to something else.
CONVERSION_VERSION = 4


def converted(gguf: Path, digest: str, recorder: Recorder) -> Path:
    """Directory with ``gguf`` dequantised to float32 safetensors, made on first use.

    That happens in a phase ``convert``.

    Parameters
    ----------
    gguf : Path
        The file.
    digest : str
        Digest of its content, 64 hex digits: the cache key.

    Raises
    ------
    InputError
        If the file is damaged or of an architecture that transformers cannot read.
    """
    by = f"v{CONVERSION_VERSION}-{own_version('transformers')}"
    final = cache_root() / "converted" / f"{digest[:32]}-{by}"

    def build(directory: Path) -> None:
        told = {
            "failed": "transformers cannot convert this GGUF file",
            "where": str(gguf),
            "fix": "Use a GGUF of an architecture it supports, or model=path with safetensors",
        }
        if in_own_python():
            run_forked(dequantise.run, gguf, directory, **told)
        else:  # an environment may lack what it takes, and converts as everybody does
            run_module(dequantise.__name__, gguf, directory, **told)

    return publish(final, build, making=recorder.phase("convert", measured=False))
