"""Every causal text model of the installed transformers, tiny and random, by ``task=inference``.

    python benchmarks/architectures.py                    one JSON object a type on standard output
    python benchmarks/architectures.py llama mamba2       only these
    python benchmarks/architectures.py --write            and docs/architectures.md from them

Each runs in a process of its own, on one thread in float32. A type is ``measured`` where the
attempt ends without an error and no proof of behaviour failed; everything else has its reason
beside it, so that no type is left out in silence. Parameters and cache bytes are held against what
the arithmetic predicts, where it knows the type.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TABLE = ROOT / "docs" / "architectures.md"
LIMIT_S = 120
LIMIT_BYTES = 2 << 30
PROMPT_TOKENS, NEW_TOKENS, BATCH = 12, 4, 2

#: A size for every field that a configuration may have of it: they fit each other.
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_d_ssm": 128,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 16,
    "state_size": 16,
    "time_step_rank": 4,
    "chunk_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "lru_width": 64,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 128,
    "block_size": 16,
}

#: What a family needs beside them: names of its own, divisors, kinds of layers.
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "vocab_size": 260,
        **{
            f"{part}_config": {
                "hidden_size": 64,
                "hidden_size_global": 64,
                "intermediate_size": 96,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
            }
            for part in ("patcher", "encoder", "decoder", "global")
        },
    },
    "codegen": {"rotary_dim": 16},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("sliding_attention", "full_attention")
        }
    },
    "dbrx": {
        "d_model": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {
            "hidden_size": 64,
            "ffn_hidden_size": 32,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "ffn_act_fn": {"name": "silu"},
        },
    },
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 16},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    # One layer in eight is attention: here the second of two.
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "xlnet": {"d_head": 16},
    "xlstm": {"qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 1},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"] * 2, "num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1},
    # Inner width over the width of a head.
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
}


def types() -> dict[str, str | None]:
    """Every type with a causal language model, and why planning refuses it, or None."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from orchestrator.engines.transformers.model_types import type_problem

    found = {}
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        problem = type_problem({"model_type": name}, "model.architecture")
        found[name] = problem.what if problem else None
    return found


def architecture(model_type: str) -> dict[str, Any]:
    """A tiny configuration of that type whose sizes fit each other."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from orchestrator.engines.transformers.attention_choice import declares

    kind = CONFIG_MAPPING[model_type]
    sizes = {name: value for name, value in SIZES.items() if declares(kind, name)}
    if "kv_lora_rank" in sizes:
        # Every head has keys and values of its own behind one compressed vector.
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return {"model_type": model_type, **sizes, **OWN.get(model_type, {})}


def measure(model_type: str, directory: Path) -> dict[str, Any]:
    """One attempt of ``task=inference`` in this process."""
    import torch

    from orchestrator.errors import ConfigError, Infeasible, one_line
    from orchestrator.measure import HostClock, Recorder
    from orchestrator.tasks import inference
    from testing.trial import make_identity

    sizes: dict[str, Any] = {
        "batch_size": BATCH,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
    }
    model = {"architecture": architecture(model_type)}
    for attention in ("sdpa", "eager"):
        identity = make_identity("fp32", model=model, attention=attention, **sizes)
        identity["protocol"].update(warmup=0, min_repetitions=1, max_repetitions=1)
        events: list[dict[str, Any]] = []
        try:
            if refused := inference.TASK.check(identity):
                return {"outcome": "refused", "reason": refused}
            recorder = Recorder(events.append, HostClock(), directory)
            inference.run(identity, recorder)
        except ConfigError as error:
            return {"outcome": "refused", "reason": one_line(error)}
        except Infeasible as error:
            if attention == "sdpa" and "attention" in str(error):
                continue
            return {"outcome": "infeasible", "reason": one_line(error)}
        except (Exception, torch.OutOfMemoryError) as error:
            return {"outcome": "error", "reason": f"{type(error).__name__}: {one_line(error)}"}
        return {
            "outcome": "measured",
            "attention": next(
                e["got"] for e in events if e["e"] == "engaged" and e["what"] == "attention"
            ),
            "proofs": _fact(events, "proofs"),
            **_predicted(identity, events),
        }
    raise AssertionError("eager attention is what every model has")


def _fact(events: list[dict[str, Any]], key: str) -> Any:
    return [e["value"] for e in events if e["e"] == "fact" and e["key"] == key][-1]


def _predicted(identity: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    """What was measured of the sizes, and what the arithmetic says of them."""
    from orchestrator.engines.transformers.expected import expect_inference
    from orchestrator.errors import ConfigError

    (weights,) = [e["value"] for e in events if e["e"] == "value" and e["name"] == "weights_bytes"]
    found = {
        "parameters": _fact(events, "parameters"),
        "weights_bytes": int(weights),
        "cache_bytes": _fact(events, "cache_bytes"),
    }
    try:
        expected = expect_inference(identity, _fact(events, "model_config"))
    except ConfigError as error:
        return {**found, "predicted": None, "why": error.what}
    assert expected is not None
    return {
        **found,
        "predicted": {
            "weights_bytes": expected.sizes_bytes["weights_bytes"],
            "cache_bytes": expected.sizes_bytes["kv_bytes"],
        },
    }


def in_a_process(model_type: str) -> dict[str, Any]:
    """:func:`measure` in a fork, whatever becomes of it."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(LIMIT_S)
        resource.setrlimit(
            resource.RLIMIT_AS, (LIMIT_BYTES + _taken_bytes(), resource.RLIM_INFINITY)
        )
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        with tempfile.TemporaryDirectory() as name, os.fdopen(write, "w") as out:
            os.environ["ORCHESTRATOR_CACHE"] = str(Path(name) / "cache")
            try:
                json.dump(measure(model_type, Path(name)), out)
            except BaseException as error:
                json.dump({"outcome": "error", "reason": f"{type(error).__name__}: {error}"}, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if text:
        found: dict[str, Any] = json.loads(text)
        return found
    ended = "no answer"
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        ended = f"not done within {LIMIT_S} s" if name == "SIGALRM" else f"killed by {name}"
    return {"outcome": "error", "reason": ended}


def _taken_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def page(rows: Mapping[str, dict[str, Any]], version: str) -> str:
    """The table as Markdown."""
    causal = {name: row for name, row in rows.items() if row["outcome"] != "refused"}
    measured = {name: row for name, row in causal.items() if row["outcome"] == "measured"}
    proven = sum(set(row["proofs"].values()) == {"proven"} for row in measured.values())
    lines = [
        "# Architectures",
        "",
        "<!-- Written by benchmarks/architectures.py --write. -->",
        "",
        f"Every model type for which transformers {version} has a causal language model, tiny and",
        "random, run through `task=inference` in float32 on a CPU.",
        "",
        f"**{len(measured)} of {len(causal)} decoder-only text types are measured**"
        f" ({len(measured) / max(len(causal), 1):.0%}), {proven} of them with every",
        "[proof](protocol.md#proofs): later tokens change no earlier logits, decoding with the",
        "cache gives the logits of the whole sequence, the cache holds the tokens it was fed, and",
        "logits are numbers. Each attempt proves the same of your own model.",
        "",
        "*Weights* and *cache or state*: `exact` where the arithmetic predicts the size to the",
        "byte, `unknown` where it does not know the type. Predictions of these types are absent.",
        "",
        "| type | measured | attention | proofs | weights | cache or state |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_line(name, row) for name, row in sorted(causal.items())]
    lines += [
        "",
        "## Rejected while planning",
        "",
        "Encoders, encoder-decoders and models that read or write more than text.",
        "",
        "| type | reason |",
        "|---|---|",
    ]
    lines += [
        f"| `{name}` | {row['reason']} |"
        for name, row in sorted(rows.items())
        if row["outcome"] == "refused"
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, row: dict[str, Any]) -> str:
    if row["outcome"] != "measured":
        reason = str(row["reason"]).replace("|", "\\|")
        return f"| `{name}` | {row['outcome']}: {reason} | | | | |"
    proofs = row["proofs"]
    odd = [f"{what} {state}" for what, state in proofs.items() if state != "proven"]
    attention = "none" if row["attention"].startswith("none") else row["attention"]
    sizes = [_size(row, what) for what in ("weights_bytes", "cache_bytes")]
    cells = [f"`{name}`", "yes", attention, ", ".join(odd) or "all", *sizes]
    return f"| {' | '.join(cells)} |"


def _size(row: dict[str, Any], what: str) -> str:
    predicted = row["predicted"]
    if predicted is None:
        return "unknown"
    return "exact" if predicted[what] == row[what] else f"{predicted[what]} for {row[what]}"


def main() -> None:
    """Run what is named, else all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    asked = parser.parse_args()

    import torch
    import transformers
    import transformers.generation.utils
    import transformers.modeling_utils

    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    for name, refused in types().items():
        if asked.types and name not in asked.types:
            continue
        row = {"outcome": "refused", "reason": refused} if refused else in_a_process(name)
        rows[name] = row
        print(json.dumps({"type": name, **row}), flush=True)
    if asked.write:
        TABLE.write_text(page(rows, transformers.__version__))


if __name__ == "__main__":
    main()
