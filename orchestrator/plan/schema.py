"""The typed shape of everything a person can choose; plain dataclasses.

::

    RootConfig
    |-- task engine load model quant protocol device environment seed   identity: what is hashed
    |-- sweep                                      how one command line becomes many trials
    `-- repeats force retry isolate timeout_s preflight ceilings resources
        cluster tracking telemetry verdict slo search   settings: how and where, never hashed

A task and an engine bring a dataclass of their own (``Task.config``, ``Engine.config``), which
takes the place of ``RootConfig.task`` and ``RootConfig.engine``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from orchestrator.measure.options import bounded, choice

SCHEMA_VERSION = 2
MISSING: Any = "???"  # OmegaConf's mark for a value that must be given


DEFAULT_ENGINE = "transformers"
BITSANDBYTES = ("int8", "nf4", "fp4")
WEIGHT_ONLY = ("int8wo", "int4wo")
GGUF = ("q8_0", "q6_k", "q5_k", "q5_1", "q4_k", "q4_1", "q4_0", "mxfp4")


@dataclass
class ModelConfig:
    """Which weights. A field that its source does not read must stay empty."""

    source: str = choice("packaged", "hub", "path", "gguf", "random")
    id: str | None = None
    revision: str | None = None
    path: str | None = None
    architecture: dict[str, Any] | None = None
    trust_remote_code: bool = False


@dataclass
class QuantConfig:
    """Number format of the weights.

    ``group_size`` is that of weight-only integers: so many values of a row share a scale; null for
    one scale to a row, of ``int8wo`` only. ``dtype`` is their type where ``scheme`` is none, and
    the compute type where they are quantized when they are loaded; null for formats that say both
    (GGUF's, and that of the model's own file).
    """

    scheme: str = choice("none", *BITSANDBYTES, *WEIGHT_ONLY, *GGUF, "source")
    dtype: str | None = choice("bfloat16", "float32", "float16")
    double_quant: bool = False
    group_size: int | None = bounded(None, low=1)


@dataclass
class ProtocolConfig:
    """When a measurement has been repeated often enough."""

    warmup: int = bounded(1, low=0)
    min_repetitions: int = bounded(5, low=1)
    max_repetitions: int = bounded(10, low=1)
    max_time_s: float = bounded(8.0, low=0)
    ci_relative_half_width: float = bounded(0.05, low=0)
    confidence: float = bounded(0.95, low=0.5, high=0.9999)
    resamples: int = bounded(10_000, low=100, high=1_000_000)


@dataclass
class LoadConfig:
    """How requests come to a server.

    Attributes
    ----------
    kind : str
        ``closed``: so many users, each of whom sends the next request when the last is answered;
        ``open``: at a rate, whether or not earlier ones are answered; ``trace``: as they came once.
    concurrency : int or None
        Users of a closed loop.
    rate, arrivals, burstiness : float or None, str or None, float or None
        Of an open loop: requests a second; ``poisson``, ``constant`` or ``gamma``; and of gamma the
        coefficient of variation of the gaps: above 1, which is Poisson's, requests come in bursts.
    trace, speed : str or None, float or None
        A file of JSON lines in the form of Mooncake's traces (``timestamp`` in ms,
        ``input_length``, ``output_length``, and ``hash_ids`` that name the blocks of 512 tokens
        that a prompt begins with), and how much faster than recorded it is sent.
    requests, duration_s : int or None, float or None
        What is measured ends with so many requests due, or after so long: whichever comes first.
        With neither, 100 requests.
    ramp_s, warmup_s : float
        Load before that is not measured: it grows over ``ramp_s``, then stays for ``warmup_s``.
    lengths, spread : str, float or None
        Of prompts and outputs, whose means are ``task.prompt_tokens`` and ``task.new_tokens``:
        ``fixed``, ``normal`` or ``lognormal``, with their standard deviation over the mean.
    prefix_share : float
        Share of each prompt that all prompts begin with. Above 0 the server may keep what it has
        read: that is what is measured then.
    turns, think_s : int, float
        Requests of a conversation, and how long the user thinks between them. ``concurrency`` and
        ``rate`` are of conversations then. Each turn's prompt is all that was before and
        ``task.prompt_tokens`` more; the server may reuse what it has read of that conversation.
    """

    kind: str = choice("closed", "open", "trace")
    concurrency: int | None = bounded(1, low=1)
    rate: float | None = bounded(None, low=0.001)
    arrivals: str | None = field(
        default=None, metadata={"choices": ("poisson", "constant", "gamma")}
    )
    burstiness: float | None = bounded(None, low=0.05, high=20.0)
    trace: str | None = None
    speed: float | None = bounded(None, low=0.001)
    requests: int | None = bounded(None, low=1)
    duration_s: float | None = bounded(None, low=0.001)
    ramp_s: float = bounded(0.0, low=0)
    warmup_s: float = bounded(2.0, low=0)
    lengths: str = choice("fixed", "normal", "lognormal")
    spread: float | None = bounded(None, low=0.001, high=2.0)
    prefix_share: float = bounded(0.0, low=0, high=0.999)
    turns: int = bounded(1, low=1, high=1000, added=True)
    think_s: float = bounded(0.0, low=0, added=True)


@dataclass
class DeviceConfig:
    """Where the measured work runs. ``threads`` None: as many as the slot has cores."""

    kind: str = choice("auto", "cpu", "cuda")
    threads: int | None = bounded(None, low=1)


@dataclass
class EnvironmentConfig:
    """Packages that attempts run in, resolved to a lock; those of this program without any.

    ``overrides`` stand in place of what packages ask for themselves; ``pins`` are exact versions,
    ``environment.pins.numpy=2.1.0``. Indexes are uv's own variables (``UV_INDEX``). ``file`` is
    where the group's file lies, and its lock beside it.
    """

    python: str | None = None
    requirements: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    pins: dict[str, str] = field(default_factory=dict)
    file: str | None = None


@dataclass
class SweepConfig:
    """Axes over the configuration. Keys of ``set`` and ``axes`` are overrides, dots and all."""

    name: str | None = None
    description: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, Any] = field(default_factory=dict)
    zip: list[Any] = field(default_factory=list)
    exclude: list[Any] = field(default_factory=list)
    repeats: int | None = bounded(None, low=1, high=100_000)
    baseline: dict[str, Any] = field(default_factory=dict)
    allow_large: bool = False


@dataclass
class RetryConfig:
    """Which finished attempts the next run takes up again."""

    failed: bool = False


@dataclass
class IsolateConfig:
    """How a measured process is started."""

    start: str = choice("fork", "spawn")
    start_timeout_s: float = bounded(120.0, low=0)


@dataclass
class ResourcesConfig:
    """What a trial asks of the cluster; None leaves it to the device and the task."""

    gpus: int | None = bounded(None, low=0)
    cpus: int | None = bounded(None, low=1)
    memory_bytes: int | None = bounded(None, low=1)
    accelerator: str | None = None


@dataclass
class ClusterConfig:
    """Which Ray. ``cpus`` and ``gpus`` size the embedded one; None: what the machine has."""

    kind: str = choice("local", "ray")
    address: str | None = None
    cpus: int | None = bounded(None, low=1, only={"kind": "local"})
    gpus: int | None = bounded(None, low=0, only={"kind": "local"})


@dataclass
class TrackingConfig:
    """Where results are recorded: SQLite under ``root``, or an MLflow server at ``uri``.

    ``local_on_cluster``: SQLite on the driver's host is meant although several nodes measure.
    """

    kind: str = choice("embedded", "server")
    root: str = "mlruns"
    uri: str | None = None
    local_on_cluster: bool = False

    def command(self, words: str) -> str:
        """A command line that reads from here: ``words``, and what says where this is."""
        place = ""
        if self.kind == "server":
            uri = "URI" if "@" in str(self.uri) else str(self.uri)  # it may hold a password
            place = f" tracking=server tracking.uri={shlex.quote(uri)}"
        elif self.root != TrackingConfig.root:
            place = f" tracking.root={shlex.quote(self.root)}"
        return f"python -m orchestrator {words}{place}"


@dataclass
class TelemetryConfig:
    """How often the supervisor looks at the device and the host."""

    enabled: bool = True
    nvml_period_s: float = bounded(0.05, low=0.001, only={"enabled": True})
    host_period_s: float = bounded(0.1, low=0.001, only={"enabled": True})


@dataclass
class VerdictConfig:
    """Which measurements are believed; ``rules`` maps a rule's name to its limit."""

    retries: int = bounded(1, low=0)
    cooldown_s: float = bounded(30.0, low=0)
    memory_wait_s: float = bounded(10.0, low=0)
    rules: dict[str, Any] = field(default_factory=dict)


@dataclass
class SloConfig:
    """Limits that each request of a load is to meet; recorded requests are judged by any.

    Attributes
    ----------
    ttft_s, tpot_s, e2e_s : float or None
        From when a request was due to its first token; between its tokens, in the mean; to its
        last token.
    attainment : float
        Share of the requests that are to meet all of them.
    """

    ttft_s: float | None = bounded(None, low=1e-6)
    tpot_s: float | None = bounded(None, low=1e-6)
    e2e_s: float | None = bounded(None, low=1e-6)
    attainment: float = bounded(0.95, low=0.01, high=0.9999)

    @property
    def limits(self) -> dict[str, float]:
        """Those that are given, by metric."""
        named = {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "e2e_s": self.e2e_s}
        return {name: limit for name, limit in named.items() if limit is not None}


_SEARCHED = {"kind": "capacity"}


@dataclass
class SearchConfig:
    """Which trials are measured beyond those of the plan.

    Attributes
    ----------
    kind : str
        ``none``; or ``capacity``: for each trial the highest value of ``over`` with which requests
        keep ``slo``, beginning at the value that it has.
    over : str or None
        A number of the trial: ``load.rate``, ``load.concurrency``, ``task.prompt_tokens``,
        ``task.batch_size``.
    width : float
        Of the answer, an interval, relative to its lower end.
    confidence : float
        That the interval holds the capacity.
    most_attempts, most_levels : int
        Attempts of one level, and levels, after which it stays undecided.
    lowest, highest : float or None
        No level is outside.
    """

    kind: str = choice("none", "capacity")
    over: str | None = bounded(None, only=_SEARCHED)
    width: float = bounded(0.2, low=0.01, high=2.0, only=_SEARCHED)
    confidence: float = bounded(0.95, low=0.5, high=0.999, only=_SEARCHED)
    most_attempts: int = bounded(40, low=3, only=_SEARCHED)
    most_levels: int = bounded(24, low=2, only=_SEARCHED)
    lowest: float | None = bounded(None, low=1e-6, only=_SEARCHED)
    highest: float | None = bounded(None, low=1e-6, only=_SEARCHED)


@dataclass
class Measured:
    """What is measured, and the sweep over it."""

    task: Any = MISSING
    engine: Any = MISSING
    load: LoadConfig = field(default_factory=LoadConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    seed: int = bounded(0, low=0)
    sweep: SweepConfig = field(default_factory=SweepConfig)


@dataclass
class Settings:
    """How and where a plan is run; nothing of it is hashed."""

    repeats: int = bounded(1, low=1, high=100_000)
    force: bool = False
    reuse: str = choice("exact", "hash")
    retry: RetryConfig = field(default_factory=RetryConfig)
    isolate: IsolateConfig = field(default_factory=IsolateConfig)
    timeout_s: float = bounded(1800.0, low=0.1)
    preflight: str = choice("warn", "skip", "off")
    ceilings: str = choice("auto", "off")
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    slo: SloConfig = field(default_factory=SloConfig)
    search: SearchConfig = field(default_factory=SearchConfig)


@dataclass
class RootConfig(Settings, Measured):
    """The whole configuration, as composed: what is measured, then the settings."""


IDENTITY_GROUPS: Mapping[str, type] = {
    "model": ModelConfig,
    "quant": QuantConfig,
    "protocol": ProtocolConfig,
    "device": DeviceConfig,
}
#: Of settings, groups with options that depend on others.
SETTING_KINDS: Mapping[str, type] = {
    "cluster": ClusterConfig,
    "telemetry": TelemetryConfig,
    "search": SearchConfig,
}
IDENTITY_KEYS = ("task", "engine", "load", *IDENTITY_GROUPS, "environment", "seed")
#: Mappings that take any key; others want a + before a new one.
OPEN_MAPPINGS = ("environment.pins",)
SETTING_KEYS = tuple(f.name for f in fields(Settings))


# What libraries below count and seed with.
_LARGEST = 2**63 - 1


def field_problems(kind: type, tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Walk a typed tree and yield (key, what is wrong) for values outside their field's metadata.

    Parameters
    ----------
    kind : type
        Dataclass that ``tree`` has the shape of; metadata ``choices``, ``low`` and ``high`` count.
    tree : mapping
        Plain values.
    prefix : str
        Dotted name of ``tree`` itself, ``""`` for the root.
    """
    for item in fields(kind):
        if item.name not in tree:
            continue
        key = f"{prefix}.{item.name}" if prefix else item.name
        value = tree[item.name]
        inner = get_type_hints(kind)[item.name] if isinstance(value, Mapping) else None
        if isinstance(inner, type) and is_dataclass(inner):
            yield from field_problems(inner, value, key)
        problem = _problem(item.metadata, value)
        if problem:
            yield key, problem


def _problem(rules: Mapping[str, Any], value: Any) -> str | None:
    names = rules.get("choices")
    if names is not None and value is not None and value not in names:
        return f"{value!r} is not one of {', '.join(names)}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    low, high = rules.get("low"), rules.get("high")
    if high is None and isinstance(value, int):
        high = _LARGEST
    if low is not None and value < low:
        return f"{value} is less than {low:g}"
    if high is not None and value > high:
        return f"{value} is more than {high:g}"
    return None
