"""Builds the ONNX form of a model: ``python -m ….make REQUEST.json DIRECTORY``.

Run by the Python of this program, which has torch and transformers; ONNX Runtime's own builder is
imported from the environment of the trial, behind everything that is installed here.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

from orchestrator.engines import transformers as loading
from orchestrator.engines.gguf_tokens import PROBE
from orchestrator.engines.reference import reference_identity
from orchestrator.engines.separate import exits_for_a_full_disk
from orchestrator.engines.transformers.footprint import parameters_of
from orchestrator.engines.transformers.tokens import load_tokenizer, ordinary_ids
from orchestrator.measure import HostClock, Recorder

ABOUT = "about.json"
PRECISIONS = {"fp32": "fp32", "int4wo": "int4"}
_BUILDER = "onnxruntime_genai.models.builder"
_QUANTIZED = "MatMulNBits"


def main(request: Path, target: Path) -> None:
    """Write the model of a trial to ``target``, with what the engine wants to know of it."""
    asked = json.loads(request.read_text())
    sys.path.append(asked["packages"])
    identity = reference_identity(asked["identity"])
    recorder = Recorder(lambda event: None, HostClock(), target.parent)
    prepared = loading.prepare(identity, recorder)
    assert prepared.directory is not None, "planning rejects random weights"
    extra = {"int4_block_size": asked["group_size"]} if asked["group_size"] else {}
    sys.argv = [
        *(_BUILDER, "-i", str(prepared.directory), "-o", str(target)),
        *("-p", asked["precision"], "-e", "cpu", "-c", str(target.parent / "scratch")),
        *(["--extra_options", *(f"{k}={v}" for k, v in extra.items())] if extra else []),
    ]
    runpy.run_module(_BUILDER, run_name="__main__", alter_sys=True)
    tokenizer = load_tokenizer(prepared, trust_remote_code=False)
    about = {
        "parameters": parameters_of(prepared.config, own_code=False),
        "vocabulary": int(prepared.config.get_text_config(decoder=True).vocab_size),
        "ordinary_ids": ordinary_ids(prepared),
        "context_tokens": prepared.context_tokens,
        "tokenizer": tokenizer if isinstance(tokenizer, str) else None,
        "start_id": None if isinstance(tokenizer, str) else tokenizer.start_id,
        "end_ids": [] if isinstance(tokenizer, str) else list(tokenizer.end_ids),
        "probe": None if isinstance(tokenizer, str) else [PROBE, tokenizer.encode(PROBE)],
        "begin_of_text": [] if isinstance(tokenizer, str) else list(tokenizer.begin_of_text),
        "quantized": _quantized(target / "model.onnx"),
    }
    (target / ABOUT).write_text(json.dumps(about))


def _quantized(file: Path) -> dict[str, Any]:
    """How many products of packed weights the file holds, of how many bits and values a block."""
    import onnx_ir

    nodes = [n for n in onnx_ir.load(file).graph.all_nodes() if n.op_type == _QUANTIZED]
    kinds = {(n.attributes["bits"].value, n.attributes["block_size"].value) for n in nodes}
    return {"count": len(nodes), "kinds": sorted(kinds)}


if __name__ == "__main__":
    exits_for_a_full_disk(main, Path(sys.argv[1]), Path(sys.argv[2]))
