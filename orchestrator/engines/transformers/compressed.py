"""Checkpoints of compressed-tensors: which are measured as they are, and what of them is in memory.

::

    config.json   quantization_config: groups of layers, bits, who shares a scale
    the file      packed integers and their scales
    in memory     plain numbers of the configuration's dtype: transformers has no products with
                  the packed ones, and unpacks them while it loads (or in the first call)

So ``quant=source`` measures the quality of the checkpoint, and the speed and size of what it is
unpacked to; the row says both. Asked while planning: imports neither torch nor the library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.measure import InputError

METHOD = PACKAGE = "compressed-tensors"
ADVICE = "use environment=compressed_tensors"
#: What each row of ``quant=source`` says of its file.
LAYERS_FACT = "file_layers"
_DTYPES = ("bfloat16", "float16", "float32")
_SCALE, _PACKED = "weight_scale", "weight_packed"
# Of safetensors: types that mean nothing without a scale.
_UNSCALED = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2")


def compression(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The part of a configuration that says what its packed weights are; None without one."""
    found = config.get("quantization_config")
    of_ours = isinstance(found, Mapping) and found.get("quant_method") == METHOD
    return found if of_ours else None


def source_problem(config: Mapping[str, Any]) -> str | None:
    """Why ``quant=source`` cannot measure this checkpoint, in one line; None where it can."""
    found = compression(config)
    if found is None:
        return (
            f"transformers takes quant=source for checkpoints of {METHOD}, and this one is not: "
            "name a format, for example quant=bf16"
        )
    groups = found.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, Mapping) else []
    if not schemes or not all(isinstance(s, Mapping) and s.get("weights") for s in schemes):
        return f"the quantization_config names no groups of weights that {METHOD} could unpack"
    for name in ("input_activations", "output_activations"):
        if any(scheme.get(name) for scheme in schemes):
            return (
                f"the checkpoint's activations are quantized too ({name}), which transformers only "
                "simulates, in floating point: what is measured would not be the checkpoint"
            )
    for name in ("kv_cache_scheme", "transform_config"):
        if found.get(name):
            return f"the checkpoint has a {name}, which is lost when its weights are unpacked"
    if (dtype := dtype_in_memory(config)) not in _DTYPES:
        return f"the checkpoint is to be unpacked to {dtype}, which is none of {', '.join(_DTYPES)}"
    return None


def dtype_in_memory(config: Mapping[str, Any]) -> str:
    """What the weights are unpacked to: the dtype that the configuration says."""
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def quant_in_memory(quant: Mapping[str, Any], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """``identity["quant"]`` as the weights lie in memory: ``source`` is unpacked, others as asked.

    A reference asks for ``source`` in a dtype of its own.
    """
    if quant["scheme"] != "source":
        return quant
    return {**quant, "scheme": "none", "dtype": quant["dtype"] or dtype_in_memory(config)}


def layers(config: Mapping[str, Any]) -> str:
    """What the file holds most layers in: ``int4 in groups of 32``; of several groups all."""
    found = compression(config)
    schemes = found["config_groups"].values() if found else ()
    return ", ".join(dict.fromkeys(_kind(scheme["weights"]) for scheme in schemes))


def _kind(weights: Mapping[str, Any]) -> str:
    kind = f"{weights.get('type', 'int')}{weights.get('num_bits')}"
    if weights.get("group_size"):
        return f"{kind} in groups of {weights['group_size']}"
    return f"{kind} by {'row' if weights.get('strategy') == 'channel' else weights.get('strategy')}"


def packed_matrices(files: Iterable[Path]) -> tuple[int, int]:
    """Of the matrices in a checkpoint, how many are packed, and how many there are.

    Raises
    ------
    InputError
        If one that is packed has no scale, which transformers reads as if it were plain numbers;
        or none is packed.
    """
    from safetensors import safe_open

    packed: list[str] = []
    plain = 0
    names: set[str] = set()
    for file in files:
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                names.add(name)
                found = tensors.get_slice(name)
                of, _, what = name.rpartition(".")
                if what == _PACKED or (what == "weight" and found.get_dtype() in _UNSCALED):
                    packed.append(of)
                elif what == "weight" and len(found.get_shape()) > 1:
                    plain += 1
    bare = sorted(of for of in packed if f"{of}.{_SCALE}" not in names)
    if bare or not packed:
        what = f"{bare[0]} has no {_SCALE}" if bare else "no matrix in it is packed"
        raise InputError(
            f"the files do not belong to their quantization_config: {what}",
            fix="The files must belong to config.json",
        )
    return len(packed), len(packed) + plain
