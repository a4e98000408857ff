"""Writes a GGUF file as float32 safetensors: ``python -m ….dequantise GGUF OUT``."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any


def read_once() -> None:
    """Have transformers parse the file and build the map of tensor names once, not again and again.

    It opens a reader for the configuration, the weights and the tokenizer, each of which goes
    through every token of the vocabulary; and it makes the map, which depends on the architecture
    alone, for every module of the model. Both take several times as long as dequantizing does.
    """
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            # Slicing a memmap makes another memmap: ten times what slicing an array takes.
            self._plain = np.asarray(mapped)

    gguf.GGUFReader = cache(Reader)
    gguf.get_tensor_name_map = cache(gguf.get_tensor_name_map)


def main(gguf: Path, directory: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` (float32) and the tokenizer to ``directory``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    read_once()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    )
    model.save_pretrained(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
    except Exception as error:  # speed needs none; quality on a text will say that it is missing
        print(f"the file's tokenizer cannot be converted: {error}", file=sys.stderr)
    else:
        tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
