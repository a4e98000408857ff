"""The metrics that the protocol defines (``docs/protocol.md``), declared once for all who record
them; a task adds its own in ``Task.metrics``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from orchestrator.measure.metric import MetricSpec

LOADING = (
    MetricSpec("load_s", "s", "lower", meaning="until the model is ready on its device"),
    MetricSpec("weights_bytes", "bytes", "lower", exact=True, meaning="as they lie on the device"),
    MetricSpec(
        "weights_bits_per_parameter", "bit", "lower", exact=True, title="bits per parameter"
    ),
)
GENERATION = (
    MetricSpec(
        "first_call_s", "s", "lower", meaning="the very first call after load, before any warm-up"
    ),
    MetricSpec("ttft_s", "s", "lower", title="TTFT", meaning="time to first token"),
    MetricSpec(
        "itl_s", "s", "lower", title="ITL", meaning="time between consecutive output tokens"
    ),
    MetricSpec("tpot_s", "s", "lower", title="TPOT", meaning="time per output token"),
    MetricSpec(
        "e2e_s", "s", "lower", title="end to end", meaning="prefill and decode of one sequence"
    ),
    MetricSpec("prefill_tokens_per_s", "tokens/s", "higher"),
    MetricSpec("decode_tokens_per_s", "tokens/s", "higher", meaning="without prefill, whole batch"),
)
MEMORY = (
    MetricSpec(
        "peak_memory_over_weights_bytes",
        "bytes",
        "lower",
        title="peak over weights",
        meaning="memory peak beyond the weights",
    ),
    MetricSpec(
        "process_memory_bytes",
        "bytes",
        "lower",
        title="process memory",
        meaning="memory peak of the process",
    ),
    MetricSpec("device_memory_bytes", "bytes", "lower", title="device memory"),
    MetricSpec("host_memory_bytes", "bytes", "lower", title="host memory"),
)
ENERGY = (
    MetricSpec("energy_j", "J", "lower"),
    MetricSpec("power_w", "W"),
    MetricSpec("joules_per_token", "J/token", "lower", title="energy per token"),
    MetricSpec("joules_per_request", "J", "lower", title="energy per request"),
)
QUALITY = (
    MetricSpec("perplexity", "1", "lower", exact=True, meaning="lower is better"),
    MetricSpec(
        "kl_to_reference",
        "nats",
        "lower",
        exact=True,
        title="KL",
        meaning="divergence from the reference precision, per token",
    ),
    MetricSpec(
        "kl_top_to_reference",
        "nats",
        "lower",
        exact=True,
        title="KL top",
        meaning="the same over the engine's likeliest tokens: a lower bound",
    ),
    MetricSpec(
        "top1_agreement",
        "1",
        "higher",
        exact=True,
        title="top-1 agreement",
        meaning="share of tokens where the reference precision predicts the same",
    ),
)
UTILISATION = (
    MetricSpec("mfu", "1", "higher", title="MFU"),
    MetricSpec("hfu", "1", "higher", title="HFU"),
)

#: What the metrics of ``task.evaluate`` begin with: they are of items.
EVALUATION = "evaluation."

#: Also what is known of metrics that were recorded before they were declared.
VOCABULARY = {
    spec.name: spec for spec in (*LOADING, *GENERATION, *MEMORY, *ENERGY, *QUALITY, *UTILISATION)
}

# What arithmetic expects of a trial is neither good nor bad.
_EXPECTED = ("predicted_", "measured_over_predicted.")


def protocol_specs(names: Iterable[str]) -> dict[str, MetricSpec]:
    """What the protocol says of those of ``names`` that it defines."""
    return {name: VOCABULARY[name] for name in names if name in VOCABULARY}


def spec_for(
    name: str, unit: str | None = None, declared: Mapping[str, MetricSpec] | None = None
) -> MetricSpec:
    """What a metric is: as it was declared, else as the protocol has it, else by name and unit.

    Parameters
    ----------
    name : str
        Of a metric, or of a phase's figure (``decode.power_w``), which is what its metric is.
    unit : str, optional
        As recorded; by default the one the name ends in.
    declared : mapping of str to MetricSpec, optional
        :attr:`AttemptReport.specs`.
    """
    known = {**VOCABULARY, **(declared or {})}
    if name in known:
        return known[name]
    if name.startswith(_EXPECTED):
        return replace(MetricSpec.undeclared(name, unit), better=None)
    phase, _, metric = name.rpartition(".")
    if metric in known:
        return replace(known[metric], name=name, title=f"{phase} {known[metric].title}")
    return MetricSpec.undeclared(name, unit)
