"""Where the time of prefill and decode goes, operator by operator, under torch.profiler.

::

    prepare, load                      unprofiled
    profile                            warm-up under the profiler, then one pass for the table
    trace                              where that has many decode steps, a shorter one for the
                                       trace, shapes and FLOPs, which cost most
    plain                              the shorter pass again, without the profiler

A pass under the profiler is slower than one without: none of its times is published as a latency,
only shares, and ``profiler_overhead`` says how much slower it was, decode steps being alike.
``operators.json`` holds the whole table, ``trace.json.gz`` opens in Perfetto.

======================  ===========================================================================
``busy_fraction``       union of kernel intervals over wall time; on a CPU of operator intervals
``prefill.self_share``  of all self time; ``decode.self_share`` is the rest
``top_operator_share``  of the operator with the longest self time
======================  ===========================================================================

``bound`` says which of the device's limits, measured beside it, an operator works against. A hint,
not a proof: bytes are those of an operator's tensor inputs, read once each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

from orchestrator.engines import registry as engines
from orchestrator.engines import texts
from orchestrator.engines.port import Generation, Session, Work
from orchestrator.measure import (
    Clock,
    ConfigError,
    Identity,
    MetricSpec,
    Mismatch,
    Recorder,
    Task,
)
from orchestrator.measure.figures import Bars, Breakdown, Ranking
from orchestrator.measure.options import bounded, choice, options_of
from orchestrator.measure.sampling import NoPhases
from orchestrator.tasks._cuda_memory import memory_history
from orchestrator.tasks.ceilings.timed_operations import Timer
from orchestrator.tasks.profile.attribution import Operator, Profile, attribute
from orchestrator.tasks.profile.capture import capture, mark_phase, no_collection

if TYPE_CHECKING:
    import torch


_SIDE = {"cpu": 512, "cuda": 4096}
_COPY_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class Ceiling:
    """The best of a few matrix products and copies on this device.

    Attributes
    ----------
    flops_per_s : float
        Square product in ``dtype``.
    bytes_per_s : float
        A copy's bytes read and written.
    """

    dtype: str
    flops_per_s: float
    bytes_per_s: float

    def bound(self, operator: Operator) -> str | None:
        """``compute`` or ``memory``; None for an operator whose FLOPs or bytes are not known."""
        if not operator.flops or not operator.read_bytes:
            return None
        compute_s = operator.flops / self.flops_per_s
        return "compute" if compute_s > operator.read_bytes / self.bytes_per_s else "memory"


def measure_ceiling(device: torch.device, dtype: torch.dtype, clock: Clock) -> Ceiling:
    """Measure both ceilings; takes a fraction of a second."""
    import torch

    side = _SIDE[device.type]
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    timer = Timer(clock)
    product_s = timer.least_s(lambda: left @ right)
    copy_s = timer.least_s(lambda: target.copy_(source))
    return Ceiling(
        str(dtype).removeprefix("torch."), 2.0 * side**3 / product_s, 2.0 * source.nbytes / copy_s
    )


# name -> prompt tokens, decode steps
SCENARIOS = {"prefill_dominant": (1024, 8), "decode_dominant": (16, 128)}
CUSTOM = "custom"
_TOLD = 10
_SHAPES_TOLD = 5
# A decode step of 30 layers is 6,000 events: with more steps a trace is too large for any viewer.
_TRACE_STEPS = 8
# A GPU's warm-up is the pass itself: kernels are chosen and memory is had by size. A CPU's touches
# the weights and starts the profiler: three profiles each after a whole prompt and after a short
# one did not differ (float32, overhead 1.12 to 1.26 and 1.15 to 1.22).
_WARM_TOKENS = 64


@dataclass
class ProfileConfig:
    """Options of ``task=profile``.

    Attributes
    ----------
    scenario : str
        ``prefill_dominant`` (1024 prompt tokens, 8 decode steps), ``decode_dominant`` (16, 128), or
        ``custom``, of ``prompt_tokens`` and ``decode_steps``.
    prompt_tokens, decode_steps : int
        Of ``custom``; 0 elsewhere.
    warmup : int
        Passes under the profiler before the one that is kept, on a CPU of a short prompt; with 0
        the pass that is kept is the first of all.
    shapes, memory, stacks : bool
        What the profiler records beside times; stacks make it much slower.
    """

    name: str = "profile"
    scenario: str = choice(*SCENARIOS, CUSTOM)
    batch_size: int = bounded(1, low=1)
    prompt_tokens: int = bounded(0, low=0)
    decode_steps: int = bounded(0, low=0)
    warmup: int = bounded(1, low=0)
    shapes: bool = True
    memory: bool = True
    stacks: bool = False


def lengths(options: Mapping[str, Any]) -> tuple[int, int]:
    """Prompt tokens and decode steps asked for.

    Raises
    ------
    ConfigError
        For lengths that contradict the scenario.
    """
    scenario = options["scenario"]
    own = (int(options["prompt_tokens"]), int(options["decode_steps"]))
    if scenario == CUSTOM:
        if not all(own):
            raise ConfigError(
                "custom needs both lengths", where="task.prompt_tokens, task.decode_steps"
            )
        return own
    if any(own):
        raise ConfigError(
            f"{scenario} has lengths of its own",
            where="task.prompt_tokens, task.decode_steps",
            fix="Leave them out, or use task.scenario=custom",
        )
    return SCENARIOS[scenario]


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    if not engines.engine_of(identity).in_torch:
        return (
            f"torch.profiler does not follow the operators of {identity['engine']['name']}: "
            "use engine=transformers"
        )
    return engines.check(identity, _work(identity["task"]))


def _work(options: Mapping[str, Any]) -> Work:
    return Work(options["batch_size"], sum(lengths(options)), named="the scenario's tokens")


def run(identity: Identity, recorder: Recorder) -> None:
    """Profile one trial; see the module for its phases."""
    options = options_of(ProfileConfig, identity)
    prompt_tokens, decode_steps = lengths(identity["task"])
    work = _work(identity["task"])
    model = engines.prepare(identity, recorder, work)
    cuda = identity["device"]["kind"] == "cuda"
    with memory_history(recorder) if cuda and options.memory else nullcontext():
        session = engines.load(model, work, recorder)
        size = (options.batch_size, prompt_tokens)
        prompt = texts.random_prompt(session.ordinary_ids, identity["seed"], *size)
        _profile(session, prompt, decode_steps, options, identity, recorder)


class _Marked(NoPhases):
    """Phases as ranges of the profile."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._clock.sync()
        with mark_phase(name):
            yield
            self._clock.sync()  # the device's work belongs inside the window


def _profile(
    session: Session,
    prompt: list[list[int]],
    decode_steps: int,
    options: ProfileConfig,
    identity: Identity,
    recorder: Recorder,
) -> None:
    import torch

    clock = recorder.clock
    trace_steps = min(decode_steps, _TRACE_STEPS)
    timings: list[Generation] = []
    marked = _Marked(clock)

    def generate(prompt: list[list[int]], steps: int) -> None:
        timings.append(session.generate(prompt, steps + 1, marked))

    work = partial(generate, prompt, decode_steps)
    short_work = partial(generate, prompt, trace_steps)

    cuda = identity["device"]["kind"] == "cuda"
    dtype = getattr(torch, identity["quant"]["dtype"])
    ceiling = measure_ceiling(torch.device(identity["device"]["kind"]), dtype, clock)
    one_pass = trace_steps == decode_steps
    trace = recorder.artifact("trace.json.gz")
    passes: dict[str, Any] = {"cuda": cuda, "stacks": options.stacks}
    full: dict[str, Any] = {"shapes": options.shapes, "memory": options.memory, "trace": trace}
    plain: dict[str, Any] = {"shapes": False, "memory": False, "trace": None}
    with recorder.phase("profile"):
        events = capture(
            work,
            **passes,
            **(full if one_pass else plain),
            warm_work=short_work
            if cuda
            else partial(generate, [row[:_WARM_TOKENS] for row in prompt], 2),
            warmup=options.warmup,
        )
    profiled = timings[-1]
    detail_events = events
    if not one_pass:
        with recorder.phase("trace", measured=False):
            # The model is warm, and the profiler wants a step of warm-up.
            detail_events = capture(short_work, **passes, **full, warm_work=lambda: None, warmup=1)
    with recorder.phase("plain", measured=False):
        short_work()
    try:
        with no_collection():
            profile = attribute(events, device=cuda)
            detail = profile if one_pass else attribute(detail_events, device=cuda)
    except ValueError as error:
        raise Mismatch(f"the profile cannot be used: {error}", where="task=profile") from error
    recorder.fact("trace_decode_steps", trace_steps)
    recorder.value("profiler_overhead", "1", _overhead(profiled, timings[-1]))
    _record(profile, detail, trace_steps, ceiling, cuda=cuda, recorder=recorder)


def _overhead(profiled: Generation, plain: Generation) -> float:
    """How many times longer ``profiled`` took than ``plain`` would, had it as many decode steps."""
    steps = len(profiled.intervals_s)
    plain_s = plain.ttft_s + steps * mean(plain.intervals_s)
    return (profiled.ttft_s + sum(profiled.intervals_s)) / plain_s


def _record(
    profile: Profile,
    detail: Profile,
    detail_steps: int,
    ceiling: Ceiling,
    *,
    cuda: bool,
    recorder: Recorder,
) -> None:
    on_device = any(operator.kernels for operator in profile.operators)
    recorder.engaged(
        "profiled work", "device" if cuda else "host", "device" if on_device else "host"
    )
    recorder.value("busy_fraction", "1", profile.busy_fraction)
    for name, wall_ns in profile.wall_ns.items():
        recorder.value(f"{name}.busy_fraction", "1", profile.busy_ns[name] / wall_ns)
        recorder.value(f"{name}.self_share", "1", profile.phase_self_ns(name) / profile.self_ns)
    top = profile.operators[0]
    recorder.value("top_operator_share", "1", profile.share(top))
    recorder.value("operators", "1", len(profile.operators))
    recorder.value("operator_calls", "1", sum(o.calls for o in profile.operators))
    if cuda:
        for direction, name in (("HtoD", "host_to_device"), ("DtoH", "device_to_host")):
            copies = profile.copies.get(direction)
            recorder.value(f"{name}_copies", "1", copies.count if copies else 0)
            recorder.value(f"{name}_bytes", "bytes", copies.moved_bytes if copies else 0)
    else:
        for name in ("host_to_device", "device_to_host"):
            recorder.absent(f"{name}_copies", "1", "the CPU is the host: nothing is copied to it")
    recorder.value("ceiling_flop_per_s", "flop/s", ceiling.flops_per_s)
    recorder.value("ceiling_bytes_per_s", "bytes/s", ceiling.bytes_per_s)
    details = {operator.name: operator for operator in detail.operators}
    rows = [
        operator_row(profile, operator, details.get(operator.name), ceiling)
        for operator in profile.operators
    ]
    recorder.fact("top_operators", [_brief(row) for row in rows[:_TOLD]])
    table = {
        "self_time_of": "device" if cuda else "host",
        "self_s": profile.self_ns / 1e9,
        "profiled_wall_s": {name: ns / 1e9 for name, ns in profile.wall_ns.items()},
        "busy_s": {name: ns / 1e9 for name, ns in profile.busy_ns.items()},
        "copies": {
            name: {"count": c.count, "bytes": c.moved_bytes, "busy_s": c.busy_ns / 1e9}
            for name, c in profile.copies.items()
        },
        "ceiling": {
            "dtype": ceiling.dtype,
            "flop_per_s": ceiling.flops_per_s,
            "bytes_per_s": ceiling.bytes_per_s,
        },
        "detail_decode_steps": detail_steps,
        "operators": rows,
    }
    recorder.artifact("operators.json").write_text(json.dumps(table, indent=1))


def operator_row(
    profile: Profile, operator: Operator, detail: Operator | None, ceiling: Ceiling
) -> dict[str, Any]:
    """One line of the table, as plain JSON; shares, also those by phase, are of all self time.

    ``detail`` is the operator in the pass with shapes, which may be the shorter one: shapes, FLOPs
    and bytes, and rates from that pass's own times.
    """
    detail = detail or Operator(operator.name)
    seconds = detail.self_ns / 1e9
    known = bool(detail.flops and seconds)
    shapes = sorted(detail.shapes.items(), key=lambda item: -item[1])
    return {
        "name": operator.name,
        "self_s": operator.self_ns / 1e9,
        "share": profile.share(operator),
        "phases": {name: ns / profile.self_ns for name, ns in operator.phases.items()},
        "calls": operator.calls,
        "kernels": operator.kernels,
        "shapes": [[list(map(list, one)), calls] for one, calls in shapes[:_SHAPES_TOLD]],
        # None, not 0, where the profiler gave no shapes or nobody knows the operator's products.
        "flops": detail.flops or None,
        "read_bytes": detail.read_bytes or None,
        "flop_per_s": detail.flops / seconds if known else None,
        "read_bytes_per_s": detail.read_bytes / seconds if known else None,
        "bound": ceiling.bound(detail),
    }


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("name", "self_s", "share", "phases", "calls", "bound")}


TASK = Task(
    name="profile",
    config=ProfileConfig,
    run=run,
    unread=("protocol",),
    check=check,
    on_engine=True,
    preload=engines.preload,
    secrets=engines.secrets,
    packages=engines.packages,
    metrics=(
        MetricSpec("operator_calls", "1", exact=True),
        MetricSpec(
            "profiler_overhead",
            "1",
            "lower",
            meaning="time of the pass under the profiler over that without",
        ),
    ),
    headline=(
        "busy_fraction",
        "top_operator_share",
        "prefill.self_share",
        "decode.self_share",
        "operator_calls",
        "profiler_overhead",
    ),
    figures=(
        Ranking("top_operators", "Top operators", "Of all self time under the profiler."),
        Breakdown(("prefill.self_share", "decode.self_share")),
        Bars("busy_fraction"),
    ),
)
