"""Writes a GGUF file as float32 safetensors: ``python -m ….dequantise GGUF OUT``."""

from __future__ import annotations

import sys
from pathlib import Path


def main(gguf: Path, directory: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` (float32) and the tokenizer to ``directory``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
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
