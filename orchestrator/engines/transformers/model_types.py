"""Whether a configuration is of a causal text model, and of plain weights: asked while planning.

transformers knows which classes it has for a model type; its tables are read as text, for importing
it takes seconds and a plan asks for every trial. Code of a model's own is not judged here: how it
behaves is proven when it has been measured.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.engines.source import Problem
from orchestrator.engines.transformers.compressed import METHOD, source_problem
from orchestrator.engines.transformers.quantization import (
    LEAST_QUANTIZED,
    group_problem,
    quantizer,
)

_TABLES = "models/auto/modeling_auto.py"
_CAUSAL = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
_MASKED = ("MODEL_FOR_MASKED_LM_MAPPING_NAMES",)
_SEQUENCES = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
)
_MULTIMODAL = (
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES",
)
_PARTS = ("vision_config", "audio_config", "vision_tower", "mm_vision_tower")
# What a model that can be either says of itself where it is to read from left to right.
_DECODES = ("is_decoder", "causal")
_QUANTIZED = ("quantization_config", "compression_config")
# transformers fetches the newest code from there: ``OWNER/NAME--file.Class``.
_OTHER_REPOSITORY = re.compile(r'"([^"]+)--')
EXPERT_COUNTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "moe_num_primary_experts",
    "num_moe_experts",
)


def type_problem(
    config: Mapping[str, Any], where: str, *, own_code: bool = False
) -> Problem | None:
    """Why a configuration is not of a causal text model; None where it is or is not known.

    Parameters
    ----------
    own_code : bool
        Code that comes with the model is run (``trust_remote_code``), if there is any.
    """
    if own_code and (elsewhere := _OTHER_REPOSITORY.search(json.dumps(config.get("auto_map")))):
        return Problem(
            f"the model's code is in another repository, {elsewhere[1]}, in whatever version",
            where,
            f"Copy its files next to the weights, and take {elsewhere[1]}-- out of auto_map",
        )
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or (own_code and config.get("auto_map")):
        return None
    tables = _tables()
    if not tables:  # no transformers here, or one with other tables
        return None
    if any(part in config for part in _PARTS) or _in(tables, _MULTIMODAL, model_type):
        return Problem(
            f"{model_type} reads more than text: only text models are measured",
            where,
            "Save its language model by itself, if it has one, and give that directory",
        )
    if _in(tables, _SEQUENCES, model_type):
        return Problem(
            f"{model_type} is an encoder and a decoder: only decoder-only models are measured",
            where,
            "Choose a causal language model",
        )
    both = _in(tables, _MASKED, model_type) or _reads_both_ways(model_type)
    if both and not any(config.get(name) is True for name in _DECODES):
        return Problem(
            f"{model_type} sees the tokens it is to predict: it is no causal language model",
            where,
            "Choose a causal language model; a decoder of this type says is_decoder=true",
        )
    if model_type not in tables[_CAUSAL] and _known(tables, model_type):
        return Problem(
            f"transformers has no causal language model of the type {model_type}",
            where,
            "Choose a causal language model",
        )
    return None


def packing_problem(config: Mapping[str, Any], quant: Mapping[str, Any]) -> str | None:
    """Why these weights cannot be held as ``quant`` says, in one line; None where they can.

    Weights that are quantized already, and experts in one stack, which
    are not packed, and rows that are no multiple of the group size.
    """
    if quant["scheme"] == "source":
        return source_problem(config)
    for name, found in said_quantized(config):
        if not _meant(found, quant):
            method = _method(found)
            as_it_is = "Use quant=source, or give" if method == METHOD else "Give"
            return (
                f"the configuration says that the weights are quantized by {method}, which "
                f"quant={_label(quant)} does not mean. {as_it_is} plain weights and a "
                f"config.json without {name}"
            )
    if quant["scheme"] == "none":
        return None
    share, rows = _packed(json.dumps(config, sort_keys=True, default=str))
    if share is not None and share < LEAST_QUANTIZED:
        return (
            f"{quant['scheme']} cannot pack most of this model: the experts of a mixture lie in "
            f"one stack, which {quantizer(quant)} leaves as it is. Use quant=bf16 or a GGUF file"
        )
    return group_problem(rows, quant)


def said_quantized(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a configuration says of weights that are quantized already: field and value."""
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, Mapping)]
    return [(name, part[name]) for part in parts for name in _QUANTIZED if part.get(name)]


@lru_cache(maxsize=256)
def _packed(text: str) -> tuple[float | None, tuple[int, ...]]:
    """Share of the layers' weights in linear modules, and the lengths of these modules' rows.

    None where all of it may be, and no lengths where the arithmetic does not know the model.
    """
    config = json.loads(text)
    from orchestrator.errors import ConfigError
    from orchestrator.model import WeightFormat, read_architecture
    from orchestrator.model.weights import is_quantized

    try:
        architecture = read_architecture(config, strict=False)
    except ConfigError:
        experts = max((_number(config.get(name)) for name in EXPERT_COUNTS), default=0)
        return 0.0 if experts > 1 else None, ()
    packed = whole = 0
    rows = set()
    for layer, count in architecture.layers:
        for matrix in layer.matrices:
            whole += count * matrix.elements
            if is_quantized(matrix, WeightFormat("nf4")):
                packed += count * matrix.elements
                rows.add(matrix.inputs)
    return packed / whole if whole else None, tuple(rows)


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _method(found: Any) -> str:
    if isinstance(found, Mapping):
        return str(found.get("quant_method") or "a method it does not name")
    return str(found)


def _meant(found: Any, quant: Mapping[str, Any]) -> bool:
    """Whether weights packed by bitsandbytes are of the very format that is asked for."""
    if not isinstance(found, Mapping) or _method(found) != "bitsandbytes":
        return False
    if quant["scheme"] == "int8":
        return bool(found.get("load_in_8bit"))
    return (
        bool(found.get("load_in_4bit"))
        and found.get("bnb_4bit_quant_type", "fp4") == quant["scheme"]
        and bool(found.get("bnb_4bit_use_double_quant")) == bool(quant["double_quant"])
    )


def _label(quant: Mapping[str, Any]) -> str:
    return str(quant["dtype"] if quant["scheme"] == "none" else quant["scheme"])


def _in(tables: Mapping[str, frozenset[str]], names: tuple[str, ...], model_type: str) -> bool:
    return any(model_type in tables.get(name, ()) for name in names)


def _known(tables: Mapping[str, frozenset[str]], model_type: str) -> bool:
    """Whether transformers has this type at all; one that it does not know may be misspelt."""
    return any(model_type in found for found in tables.values())


@lru_cache(maxsize=256)
def _reads_both_ways(model_type: str) -> bool:
    """Whether its code sees the whole sequence unless the configuration makes it a decoder."""
    code, fields = (_code(model_type, part) for part in ("modeling", "configuration"))
    return "create_bidirectional_mask(" in code and "is_decoder: bool = False" in fields


@lru_cache(maxsize=256)
def has_static_cache(model_type: str) -> bool:
    """Whether its class says that it runs as one graph, and so over a cache of fixed size.

    True where transformers has no code of it here: that is found when the model is loaded.
    """
    code = _code(model_type, "modeling")
    return not code or "_can_compile_fullgraph = True" in code


def _code(model_type: str, part: str) -> str:
    """transformers' file ``part`` of a model type; empty where there is none."""
    spec = importlib.util.find_spec("transformers")
    name = model_type.replace("-", "_")
    if spec is None or spec.origin is None or not name.isidentifier():
        return ""
    file = Path(spec.origin).parent / "models" / name / f"{part}_{name}.py"
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


@lru_cache(maxsize=1)
def _tables() -> Mapping[str, frozenset[str]]:
    """Model types by the tables that transformers has of its classes."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return {}
    try:
        tree = ast.parse((Path(spec.origin).parent / _TABLES).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return {}
    found = {}
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id.endswith("_MAPPING_NAMES"):
                found[target.id] = frozenset(_keys(node.value))
    return found if _CAUSAL in found else {}


def _keys(table: ast.expr | None) -> Iterator[str]:
    """First members of the pairs in ``OrderedDict([("llama", "LlamaForCausalLM"), ...])``."""
    if not isinstance(table, ast.Call) or not table.args or not isinstance(table.args[0], ast.List):
        return
    for pair in table.args[0].elts:
        if isinstance(pair, ast.Tuple) and pair.elts and isinstance(pair.elts[0], ast.Constant):
            yield str(pair.elts[0].value)
