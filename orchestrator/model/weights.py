"""What the weights weigh in each number format: in memory as loaded, and in a GGUF file.

The formats are those of ``conf/quant`` (bitsandbytes through transformers) and llama.cpp's; the
layouts behind the formulas are in ``docs/arithmetic.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.model.architecture import (
    LINEAR,
    ROUTER,
    Architecture,
    Matrix,
)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SCHEMES = ("none", "int8", "nf4", "fp4", "int8wo", "int4wo")
FOUR_BIT = ("nf4", "fp4")
WEIGHT_ONLY = ("int8wo", "int4wo")

# bitsandbytes: values in blocks of 64 share a scale; scales quantized again go in blocks of 256.
BLOCK = 64
SCALE_BLOCK = 256
_FLOAT32 = 4
_CODE_BYTES = 16 * _FLOAT32  # the 16 values that four bits stand for, held by every matrix
_SCALE_CODE_BYTES = 256 * _FLOAT32

# llama.cpp: (values in a block, bytes of it).
GGUF_BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "MXFP4": (32, 17),
}
# What llama.cpp takes where a row is no multiple of 256.
_GGUF_FALLBACK = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_GGUF_PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class WeightFormat:
    """How the weights are held.

    Attributes
    ----------
    scheme : str
        ``none``, ``int8`` (LLM.int8), ``nf4``, ``fp4``, ``int8wo``, ``int4wo`` (both as torchao
        lays them out on a CPU); or a GGUF type such as ``Q4_K``.
    dtype : str
        Of the weights where ``none``; else of what stays dense, and of the computation.
    double_quant : bool
        The scales of ``nf4`` and ``fp4`` are quantized once more.
    packed_for_cpu : bool
        As bitsandbytes repacks four bits in the first call on a CPU with AVX512-BF16.
    group : int or None
        Values of a row that share a scale, of weight-only integers; None for all of them.
    """

    scheme: str = "none"
    dtype: str = "bfloat16"
    double_quant: bool = False
    packed_for_cpu: bool = False
    group: int | None = None

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES and self.scheme not in GGUF_BLOCKS:
            raise ConfigError(
                f"unknown scheme {self.scheme!r}",
                where="quant.scheme",
                fix=f"Known: {', '.join((*SCHEMES, *GGUF_BLOCKS))}",
            )
        if self.dtype not in DTYPE_BYTES:
            raise ConfigError(
                f"unknown dtype {self.dtype!r}",
                where="quant.dtype",
                fix=f"Known: {', '.join(DTYPE_BYTES)}",
            )

    @classmethod
    def from_quant(cls, quant: Mapping[str, Any], *, packed_for_cpu: bool = False) -> WeightFormat:
        """From ``identity["quant"]``; GGUF's formats compute in float16, as on a GPU.

        Raises
        ------
        ConfigError
            For the format of a file that is not read here.
        """
        scheme = str(quant["scheme"])
        if scheme == "source":
            raise ConfigError(
                "the format of the model's own file is not known to arithmetic",
                where="quant",
                fix="Name it, for example quant=q4_k",
            )
        if scheme.upper() in GGUF_BLOCKS:
            return cls(scheme.upper(), "float16")
        double, group = bool(quant["double_quant"]), quant.get("group_size")
        return cls(scheme, str(quant["dtype"]), double, packed_for_cpu, group)

    @property
    def is_gguf(self) -> bool:
        """Whether it is one of llama.cpp's formats."""
        return self.scheme in GGUF_BLOCKS

    @property
    def dense_bytes(self) -> int:
        """Bytes of one number that is not quantized."""
        return _FLOAT32 if self.is_gguf else DTYPE_BYTES[self.dtype]


@lru_cache(maxsize=4096)
def weights_bytes(architecture: Architecture, weights: WeightFormat) -> int:
    """Bytes of all parameters and buffers, shared ones once.

    Equals ``engines.transformers.footprint`` of the loaded model; for a GGUF type the tensors of
    a file that llama.cpp's quantizer writes with its defaults.
    """
    dense = weights.dense_bytes
    total = embedding_bytes(architecture, weights)
    total += architecture.vectors * dense
    total += sum(matrix_bytes(matrix, weights) for matrix in architecture.outer)
    if architecture.tied:
        total += architecture.head.biases * dense
    else:
        total += head_bytes(architecture, weights)
    if not weights.is_gguf:  # a file holds no rotary frequencies
        total += architecture.float32_buffers * _FLOAT32
    for layer, count in architecture.layers:
        inner = layer.vectors * dense + layer.float32_buffers * _FLOAT32
        inner += sum(matrix_bytes(matrix, weights) for matrix in layer.matrices)
        total += count * inner
    return total


def embedding_bytes(architecture: Architecture, weights: WeightFormat) -> int:
    """Bytes of the token and position tables."""
    if weights.is_gguf:
        kind = (
            weights.scheme
            if not architecture.tied
            else _gguf_head_type(weights.scheme, architecture.embedding)
        )
        table = _gguf_matrix_bytes(architecture.vocabulary, architecture.embedding, kind)
        return table + architecture.positions * architecture.hidden * _FLOAT32
    rows = architecture.vocabulary * architecture.embedding
    return (rows + architecture.positions * architecture.hidden) * weights.dense_bytes


def head_bytes(architecture: Architecture, weights: WeightFormat) -> int:
    """Bytes read to compute the logits: the head's own matrix, or the embedding it is tied to."""
    head = architecture.head
    if weights.is_gguf:
        kind = _gguf_head_type(weights.scheme, head.inputs)
        return _gguf_matrix_bytes(head.outputs, head.inputs, kind) + head.biases * _FLOAT32
    return (head.elements + head.biases) * weights.dense_bytes


def matrix_bytes(matrix: Matrix, weights: WeightFormat) -> int:
    """Bytes of a matrix inside the layers, with scales and biases, of all its ``count``."""
    if weights.is_gguf:
        kind = "F32" if matrix.part == ROUTER else weights.scheme
        rows = matrix.count * matrix.outputs
        return _gguf_matrix_bytes(rows, matrix.inputs, kind) + matrix.biases * _FLOAT32
    biases = matrix.biases * weights.dense_bytes
    if not is_quantized(matrix, weights):
        return matrix.elements * weights.dense_bytes + biases
    one = matrix.inputs * matrix.outputs
    if weights.scheme == "int8":
        return matrix.count * (one + matrix.outputs * _FLOAT32) + biases
    if weights.scheme in WEIGHT_ONLY:
        groups = matrix.outputs * _ceil(matrix.inputs, weights.group or matrix.inputs)
        if weights.scheme == "int8wo":  # a scale, and a zero point that is always zero
            return matrix.count * (one + groups * (_FLOAT32 + 1)) + biases
        return matrix.count * (_ceil(one, 2) + groups * 2 * weights.dense_bytes) + biases
    return matrix.count * _four_bit_bytes(one, weights) + biases


def is_quantized(matrix: Matrix, weights: WeightFormat) -> bool:
    """Whether the format packs this matrix: bitsandbytes and torchao take Linear modules."""
    if weights.is_gguf:
        return weights.scheme not in _GGUF_PLAIN and matrix.part != ROUTER
    return weights.scheme != "none" and matrix.kind == LINEAR


def _four_bit_bytes(elements: int, weights: WeightFormat) -> int:
    blocks = _ceil(elements, BLOCK)
    size = _ceil(elements, 2) + _CODE_BYTES
    if weights.packed_for_cpu:
        # Scales as bfloat16, whole again if they were quantized; their mean is left behind.
        return size + 2 * blocks + (_FLOAT32 if weights.double_quant else 0)
    if not weights.double_quant:
        return size + blocks * _FLOAT32
    return size + blocks + _ceil(blocks, SCALE_BLOCK) * _FLOAT32 + _SCALE_CODE_BYTES + _FLOAT32


def _gguf_head_type(kind: str, row: int) -> str:
    """llama.cpp keeps the head finer: Q6_K, or Q8_0 where its rows are no multiple of 256."""
    if kind in (*_GGUF_PLAIN, "Q8_0"):
        return kind
    return "Q6_K" if row % GGUF_BLOCKS["Q6_K"][0] == 0 else "Q8_0"


def _gguf_matrix_bytes(rows: int, row: int, kind: str) -> int:
    block, size = GGUF_BLOCKS[kind]
    if row % block:
        kind = _GGUF_FALLBACK.get(kind, "F16")
        block, size = GGUF_BLOCKS[kind]
    if row % block:
        block, size = GGUF_BLOCKS["F16"]
    return rows * (row // block) * size


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)
