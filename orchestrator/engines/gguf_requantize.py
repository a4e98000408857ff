"""Writes a GGUF file in another format: ``python -m ….requantize GGUF OUT FORMAT``.

Every matrix is dequantized to float32 and quantized again; vectors stay float32. Embeddings and the
output head are Q8_0 in formats below eight bits, as quantizers of GGUF files keep them finer.
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator.engines.gguf_files import GgufModel, copy_fields
from orchestrator.engines.separate import exits_for_a_full_disk

_FINER = ("token_embd.weight", "output.weight")
_FINER_FORMAT = "Q8_0"
_EIGHT_BITS_OR_MORE = ("F32", "F16", "BF16", "Q8_0")
# Q8_0, Q5_1, Q4_x and MXFP4 pack blocks of 32 along a row.
_BLOCK = 32
_FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q5_1": 9,
    "Q4_0": 2,
    "Q4_1": 3,
    "MXFP4": 38,
}


def main(source: Path, target: Path, name: str) -> None:
    """Write ``source`` to ``target`` with its matrices in the GGUF type ``name``."""
    import gguf
    import numpy as np
    from gguf import quants

    model = GgufModel(source)
    writer = gguf.GGUFWriter(target, str(model.value("general.architecture")))
    copy_fields(model, writer, {"general.file_type": _FILE_TYPES[name]})
    for tensor in model.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        kind = gguf.GGMLQuantizationType[_format_of(tensor.name, tensor.shape.tolist(), name)]
        if kind is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _format_of(name: str, shape: list[int], wanted: str) -> str:
    """GGUF gives a shape with the length of a row first."""
    if len(shape) < 2 or shape[0] % _BLOCK:
        return "F32"
    return table_format(wanted) if name in _FINER else wanted


def table_format(wanted: str) -> str:
    """What embeddings and the output head are written in, in a file of the format ``wanted``."""
    return wanted if wanted in _EIGHT_BITS_OR_MORE else _FINER_FORMAT


if __name__ == "__main__":
    exits_for_a_full_disk(main, Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
