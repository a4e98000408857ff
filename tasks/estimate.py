"""Arithmetic alone: what a model needs and how fast a device could run it. Nothing is measured.

A pure task: ten thousand configurations are a matter of seconds, in one process, recorded as one
run with one table. Formulas: ``docs/arithmetic.md``; devices: ``conf/hardware``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engines.transformers.configuration import known_config
from orchestrator.measure import (
    Absent,
    ConfigError,
    Evaluation,
    Identity,
    Infeasible,
    Metric,
    MetricSpec,
    Recorder,
    Task,
    Value,
)
from orchestrator.measure.options import bounded
from orchestrator.measure.vocabulary import spec_for
from orchestrator.measure.wording import gib

if TYPE_CHECKING:
    from orchestrator.model import (
        Architecture,
        CacheFormat,
        Datasheet,
        Execution,
        Measured,
        WeightFormat,
    )

# The hardware of that name is this machine, as task=ceilings measured it.
THIS = "this"

_SIZES = {
    "parameters": "parameters",
    "active_parameters": "parameters",
    "weights_bytes": "bytes",
    "weights_bits_per_parameter": "bit",
    "kv_bytes": "bytes",
    "activation_bytes": "bytes",
    "memory_bytes": "bytes",
    "longest_context_tokens": "tokens",
    "compute_bound_batch": "1",
}
_TIMES = {
    "ttft_s": "s",
    "tpot_s": "s",
    "e2e_s": "s",
    "prefill_tokens_per_s": "tokens/s",
    "decode_tokens_per_s": "tokens/s",
    "prefill_flops": "flop",
    "decode_flops": "flop",
    "decode_moved_bytes": "bytes",
    "prefill_attention_share": "1",
    "decode_attention_share": "1",
}
# Computed, not measured: one value decides.
_SPECS = {
    name: replace(spec_for(name, unit), exact=True) for name, unit in {**_SIZES, **_TIMES}.items()
} | {
    "longest_context_tokens": MetricSpec("longest_context_tokens", "tokens", "higher", exact=True),
}


@dataclass
class EstimateConfig:
    """Options of ``task=estimate``.

    Attributes
    ----------
    hardware : str
        A name of ``conf/hardware``, ``this`` (as ``task=ceilings`` measured this machine), or the
        path of a YAML file with figures.
    batch_size, prompt_tokens, new_tokens : int
    kv_dtype : str
        Of the cache: ``float32``, ``float16``, ``bfloat16``, ``float8``, ``int8`` or ``int4``.
    memory_share : float
        Share of the device's memory that may be used: the rest is the runtime's own.
    absorbed : bool
        Latent attention (DeepSeek) works on its compressed cache; false: it is expanded in every
        step, as transformers does.
    """

    name: str = "estimate"
    hardware: str = "h100"
    batch_size: int = bounded(1, low=1)
    prompt_tokens: int = bounded(512, low=1)
    new_tokens: int = bounded(128, low=1)
    kv_dtype: str = "bfloat16"
    memory_share: float = 0.95
    absorbed: bool = True


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be; :class:`ConfigError` for what has no sense."""
    options = identity["task"]
    if not 0 < options["memory_share"] <= 1:
        raise ConfigError(
            f"{options['memory_share']} is not a share between 0 and 1", where="task.memory_share"
        )
    if known_config(identity["model"]) is None:
        raise ConfigError(
            "the configuration of this model is not available",
            where="model",
            fix="Use one of model=known/..., model=random or model=path",
        )
    architecture = _architecture(identity["model"])
    _formats(identity)
    _device(options["hardware"])
    limit = architecture.context_tokens
    length = options["prompt_tokens"] + options["new_tokens"]
    if limit is not None and length > limit:
        return f"prompt_tokens + new_tokens = {length}, more than the model's context of {limit}"
    return None


def evaluate(identity: Identity) -> Evaluation:
    """Everything that arithmetic says of one configuration on one device.

    A configuration that does not fit into the device is infeasible: its sizes are told, its times
    are absent.
    """
    from orchestrator.model import (
        Execution,
        active_parameter_count,
        longest_context,
        memory,
        parameter_count,
    )

    options = identity["task"]
    architecture = _architecture(identity["model"])
    weights, cache = _formats(identity)
    device = _device(options["hardware"])
    batch, prompt = options["batch_size"], options["prompt_tokens"]
    held = memory(
        architecture,
        batch=batch,
        prompt_tokens=prompt,
        # The last token is never fed back: the cache never holds it.
        tokens=prompt + options["new_tokens"] - 1,
        weights=weights,
        cache=cache,
    )
    available = device.memory_bytes * options["memory_share"]
    context = longest_context(architecture, available, batch=batch, weights=weights, cache=cache)
    parameters = parameter_count(architecture)
    # A text in the place of a number is the reason why there is none.
    values: dict[str, float | str] = {
        "parameters": parameters,
        "active_parameters": active_parameter_count(architecture),
        "weights_bytes": held.weights_bytes,
        "weights_bits_per_parameter": 8 * held.weights_bytes / parameters,
        "kv_bytes": held.kv_bytes,
        "activation_bytes": held.activation_bytes,
        "memory_bytes": held.total_bytes,
        "longest_context_tokens": context.tokens,
    }
    facts = {"longest_context_limited_by": context.limited_by}
    infeasible = None
    if held.total_bytes > available:
        infeasible = f"needs {gib(held.total_bytes)} and {options['hardware']} has {gib(available)}"
        values |= dict.fromkeys(("compute_bound_batch", *_TIMES), infeasible)
    elif disturbance := _disturbance(device):
        values |= dict.fromkeys(("compute_bound_batch", *_TIMES), disturbance)
    else:
        job = _Job(architecture, batch, prompt, options["new_tokens"], weights, cache)
        execution = Execution(absorbed=options["absorbed"])
        values["compute_bound_batch"] = _crossing(
            architecture, prompt, weights, cache, execution, options["hardware"]
        )
        values |= _times(job, execution, device, facts)
    return Evaluation({name: _metric(name, values[name]) for name in _SPECS}, facts, infeasible)


def content(identity: Identity) -> dict[str, str | None]:
    """What a cell depends on beside its identity: formulas, the device's figures, the model's."""
    config = json.dumps(known_config(identity["model"]), sort_keys=True)
    figures = _figures(identity["task"]["hardware"])
    return {"formulas": _formulas(), "figures": _digest(figures), "model": _digest(config)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def _figures(hardware: str) -> str:
    try:
        return repr(_device(hardware))
    except ConfigError as error:
        return str(error)


@lru_cache(maxsize=1)
def _formulas() -> str:
    """A digest of the code that computes: a table made by another version is not this one's."""
    from orchestrator import model as arithmetic

    directory = Path(arithmetic.__file__).parent
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(directory.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def run(identity: Identity, recorder: Recorder) -> None:
    """One estimate as an attempt of its own: what ``reproduce`` makes."""
    found = evaluate(identity)
    for name, metric in found.metrics.items():
        if isinstance(metric, Value):
            recorder.value(name, metric.unit, metric.value)
        elif isinstance(metric, Absent):
            recorder.absent(name, metric.unit, metric.reason)
    for name, fact in found.facts.items():
        recorder.fact(name, fact)
    if found.infeasible:
        raise Infeasible(found.infeasible, where="task.hardware")


@dataclass(frozen=True)
class _Job:
    architecture: Architecture
    batch: int
    prompt: int
    new: int
    weights: WeightFormat
    cache: CacheFormat


def _times(
    job: _Job, execution: Execution, device: Datasheet | Measured, facts: dict[str, str]
) -> dict[str, float | str]:
    """Times of a prefill and of the decode after it; says in ``facts`` what bounds either."""
    from orchestrator.model import decode, estimate, flops, moved_bytes, prefill

    common = (job.weights, job.cache, execution)
    first = prefill(job.architecture, job.batch, job.prompt, *common)
    runs = list(_even_steps(job))
    steps = [decode(job.architecture, job.batch, middle, *common) for _, middle in runs]
    try:
        ahead, each = estimate(first, device), [estimate(step, device) for step in steps]
    except ConfigError as error:
        return dict.fromkeys(_TIMES, str(error))
    facts["prefill_bound"] = ahead.bound

    def mean(values: Iterable[float]) -> float:
        every = sum(n for n, _ in runs)
        return sum(n * value for (n, _), value in zip(runs, values, strict=True)) / every

    tpot_s = mean(e.time_s for e in each)
    values: dict[str, float | str] = {
        "ttft_s": ahead.time_s,
        "e2e_s": ahead.time_s + (job.new - 1) * tpot_s,
        "prefill_tokens_per_s": job.batch * job.prompt / ahead.time_s,
        "prefill_flops": flops(first),
        "prefill_attention_share": ahead.attention_share,
    }
    if job.new == 1:
        return dict.fromkeys(_TIMES, "one new token has no decode step") | values
    facts["decode_bound"] = each[len(each) // 2].bound
    return values | {
        "tpot_s": tpot_s,
        "decode_tokens_per_s": job.batch / tpot_s,
        "decode_flops": mean(map(flops, steps)),
        "decode_moved_bytes": mean(map(moved_bytes, steps)),
        "decode_attention_share": mean(e.time_s * e.attention_share for e in each) / tpot_s,
    }


def _even_steps(job: _Job) -> Iterator[tuple[int, int]]:
    """Runs of decode steps, each with how many it has and what is cached at its middle.

    A step grows linearly with what is cached, so that the middle one is their mean, until a window
    is full: there a run ends.
    """
    first, end = job.prompt, job.prompt + max(job.new - 1, 1)
    windows = {layer.attention.window or 0 for layer, _ in job.architecture.layers}
    for low, high in pairwise([first, *sorted(w for w in windows if first < w < end), end]):
        yield high - low, (low + high - 1) // 2


@lru_cache(maxsize=65536)
def _crossing(
    architecture: Architecture,
    past: int,
    weights: WeightFormat,
    cache: CacheFormat,
    execution: Execution,
    hardware: str,
) -> float | str:
    """The batch that is bound by computing, or why there is none: one for all sizes of a sweep."""
    from orchestrator.model import compute_bound_batch

    try:
        found = compute_bound_batch(
            architecture,
            past,
            weights=weights,
            cache=cache,
            ceilings=_device(hardware),
            execution=execution,
        )
    except ConfigError as error:
        return str(error)
    return (
        "reading a sequence's cache takes longer than computing its token"
        if found is None
        else found
    )


def _architecture(model: Mapping[str, Any]) -> Architecture:
    return _read(json.dumps(known_config(model), sort_keys=True))


@lru_cache(maxsize=1024)
def _read(config: str) -> Architecture:
    from orchestrator.model import read_architecture

    return read_architecture(json.loads(config))


def _formats(identity: Identity) -> tuple[WeightFormat, CacheFormat]:
    from orchestrator.model import CacheFormat, WeightFormat

    weights = WeightFormat.from_quant(identity["quant"])
    return weights, CacheFormat(identity["task"]["kv_dtype"])


@lru_cache(maxsize=64)
def _device(name: str) -> Datasheet | Measured:
    from orchestrator.model import load_datasheet
    from orchestrator.model.known_ceilings import load_this

    return load_this() if name == THIS else load_datasheet(name)


def _disturbance(device: Datasheet | Measured) -> str | None:
    from orchestrator.model import Measured

    return device.disturbance if isinstance(device, Measured) else None


def _metric(name: str, value: float | str) -> Metric:
    if isinstance(value, str):
        return Absent(name, _SPECS[name].unit, value)
    return Value(name, _SPECS[name].unit, float(value))


TASK = Task(
    name="estimate",
    config=EstimateConfig,
    run=run,
    unread=("protocol", "seed"),
    check=check,
    evaluate=evaluate,
    content=content,
    whole_node=False,
    metrics=tuple(_SPECS.values()),
    headline=(
        "tpot_s",
        "ttft_s",
        "memory_bytes",
        "kv_bytes",
        "longest_context_tokens",
        "compute_bound_batch",
        "prefill_attention_share",
    ),
)
