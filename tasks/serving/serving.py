"""A server under load: what each request waited for, what the server managed, whether it kept up.

::

    prepare, load                     load_s
    first_call                        a request by itself: the server is ready
    under_load                        the generator, a process of its own on a core of its own
      warmup | serving                before the window, and the window
    prove                             as task=inference

The model is loaded by the engine that ``engine=`` chooses, and served from this process (llama.cpp)
or by a server that runs already (``engine=endpoint``). How requests come is ``load=``. Of every
request its times are kept: ``requests.parquet``.

Latencies of requests count from when they were due. A server that answers less than comes in has no
latency: it grows as long as one measures. Then only rates are recorded, and the verdict says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.engines import registry as engines
from orchestrator.engines import texts
from orchestrator.engines.content import content_of, text_content
from orchestrator.engines.port import Service, Session, Work
from orchestrator.engines.separate import own_command
from orchestrator.host.cpu import usable_cores
from orchestrator.measure import (
    ConfigError,
    Identity,
    Infeasible,
    InputError,
    MetricSpec,
    Recorder,
    Task,
    first_call,
)
from orchestrator.measure.columns import Column
from orchestrator.measure.figures import Distribution, Scaling
from orchestrator.measure.options import bounded, options_of
from orchestrator.measure.plain_json import from_json
from orchestrator.tasks.serving import window
from orchestrator.tasks.serving.orders import OK, Answer, Load, Orders
from orchestrator.tasks.serving.stimulus import Prompts, Shape, lead_s, limits, shapes

RANDOM, TEXT = "random", "text"
DEFAULT_SLOTS = 4
SATURATED = 0.1
# Answers are waited for so long, or for so many times as a request takes by itself.
_DRAIN_S, _DRAIN_TIMES = 60.0, 10
# Of a text, pieces begin anywhere in so many tokens.
_TEXT_TOKENS = 20_000
_MOST_ERRORS_SHOWN = 5


@dataclass
class ServingConfig:
    """Options of ``task=serving``.

    Attributes
    ----------
    prompt_tokens, new_tokens : int
        Of each request; their means where ``load.lengths`` is not fixed.
    slots : int or None
        Sequences that the server takes at once, others wait; by default 4. A server that runs
        already has its own.
    prompt : str
        ``random`` ids, ``text`` (Python's own reference, by the model's tokenizer), or a ``.txt``
        or ``.parquet`` file: each prompt is a piece of it.
    """

    name: str = "serving"
    prompt_tokens: int = bounded(128, low=1)
    new_tokens: int = bounded(32, low=1)
    slots: int | None = bounded(None, low=1)
    prompt: str = RANDOM


def _shapes(identity: Identity) -> list[Shape]:
    options = options_of(ServingConfig, identity)
    return shapes(identity["load"], options.prompt_tokens, options.new_tokens, identity["seed"])


def _work(identity: Identity, planned: Sequence[Shape]) -> Work:
    return Work(
        batch_size=options_of(ServingConfig, identity).slots or DEFAULT_SLOTS,
        tokens=max(shape.prompt_tokens + shape.new_tokens for shape in planned),
        named="the longest request, prompt and output",
        served=True,
    )


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    _check_load(identity)
    if identity["task"]["slots"] and engines.is_remote(identity):
        raise ConfigError(
            "has no effect on a server that runs already", where="task.slots", fix="Leave it out"
        )
    return engines.check(identity, _work(identity, _shapes(identity)))


def _check_load(identity: Identity) -> None:
    load, usual = identity["load"], ServingConfig()
    kind = f"load={load['name']}"
    fixed = load["lengths"] == "fixed"
    if fixed != (load["spread"] is None):
        raise ConfigError(
            "has no effect on lengths that are fixed" if fixed else "must be given",
            where="load.spread",
            fix="Write load.lengths=lognormal load.spread=0.5",
        )
    if load["name"] == "open" and (load["arrivals"] == "gamma") != (load["burstiness"] is not None):
        raise ConfigError(
            "belongs to load.arrivals=gamma",
            where="load.burstiness",
            fix="Write load.arrivals=gamma load.burstiness=2",
        )
    if load["name"] != "trace":
        return
    if not load["trace"]:
        raise ConfigError("is not given", where="load.trace", fix="Write load.trace=FILE")
    task = identity["task"]
    idle = [
        f"task.{name}"
        for name in ("prompt_tokens", "new_tokens")
        if task[name] != getattr(usual, name)
    ]
    idle += ["load.ramp_s"] * bool(load["ramp_s"]) + ["load.lengths"] * (not fixed)
    idle += ["load.prefix_share"] * bool(load["prefix_share"])
    if idle:
        raise ConfigError(f"has no effect on {kind}: a trace has it", where=idle[0])


def run(identity: Identity, recorder: Recorder) -> None:
    """Measure one trial; see the module for its phases."""
    planned = _shapes(identity)
    generator = _own_core(identity)
    work = _work(identity, planned)
    session = engines.load(engines.prepare(identity, recorder, work), work, recorder)
    prompts = _prompts(session, identity, planned)
    reuse = bool(identity["load"]["prefix_share"]) or any(shape.blocks for shape in planned)
    service = session.service(reuse=reuse)
    longest = max(planned, key=lambda shape: shape.new_tokens)
    with recorder.phase("first_call", measured=False), first_call(recorder):
        alone = session.generate([prompts.of(planned[0])], planned[0].new_tokens)
    alone_s = alone.arrivals_s[-1] * longest.new_tokens / planned[0].new_tokens
    orders = _orders(service, identity, generator, max(_DRAIN_S, _DRAIN_TIMES * alone_s))
    with recorder.phase("under_load", measured=False):
        load = _generate(orders, service, planned, prompts, recorder)
    _record(load, identity, recorder, reuse=reuse)
    size = session.footprint()
    if isinstance(size, str):
        recorder.absent("weights_bytes", "bytes", size)
    else:
        recorder.value("weights_bytes", "bytes", size.weights_bytes)
    with recorder.phase("prove", measured=False):
        session.prove([prompts.of(planned[0])], planned[0].new_tokens, recorder)
    session.close()


def _own_core(identity: Identity) -> tuple[int, ...]:
    """Cores for the generator, which the model does not compute on."""
    cores = usable_cores()
    if engines.is_remote(identity):
        return cores
    if len(cores) < 2:
        raise Infeasible(
            "a server and its load generator need a core each, and the slot has one",
            where="resources.cpus",
            fix="Leave it out, or give resources.cpus=2",
        )
    os.sched_setaffinity(0, cores[:-1])
    return cores[-1:]


def _prompts(session: Session, identity: Identity, planned: Sequence[Shape]) -> Prompts:
    seed, share = int(identity["seed"]), float(identity["load"]["prefix_share"])
    prompt = identity["task"]["prompt"]
    if prompt == RANDOM:
        return Prompts(session.ordinary_ids, seed, longest=None, prefix_share=share)
    name = texts.PACKAGED_TEXT if prompt == TEXT else prompt
    longest = max(shape.prompt_tokens for shape in planned)
    (ids,) = texts.text_prompt(session, name, 1, longest + _TEXT_TOKENS)
    return Prompts(ids, seed, longest=longest, prefix_share=share)


def _orders(service: Service, identity: Identity, cores: tuple[int, ...], drain_s: float) -> Orders:
    load = identity["load"]
    requests, duration_s = limits(load)
    return Orders(
        url=service.url,
        key_variable=service.key_variable,
        cores=cores,
        concurrency=load.get("concurrency"),
        lead_s=lead_s(load),
        ramp_s=float(load["ramp_s"]),
        requests=requests,
        duration_s=duration_s,
        drain_s=drain_s,
    )


def _generate(
    orders: Orders,
    service: Service,
    planned: Sequence[Shape],
    prompts: Prompts,
    recorder: Recorder,
) -> Load:
    """Run the generator to its end; what the orders say is in files that are gone then."""
    with tempfile.TemporaryDirectory() as directory:
        told, found = Path(directory, "orders"), Path(directory, "answers")
        with told.open("w") as lines:
            lines.write(f"{json.dumps(asdict(orders))}\n")
            for shape in planned:
                body = {**service.body, "prompt": prompts.of(shape), "max_tokens": shape.new_tokens}
                lines.write(f"{json.dumps({'due_s': shape.due_s, 'body': body})}\n")
        command, variables = own_command(
            "orchestrator.tasks.serving.generator",
            *(told, found, recorder.artifact("requests.parquet")),
        )
        with subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as generator:
            assert generator.stdout is not None
            for line in generator.stdout:
                print(line, end="")
        if generator.returncode:
            raise InputError(
                f"the load generator ended with status {generator.returncode}; its log says why",
                where="task=serving",
            )
        load: Load = from_json(Load, json.loads(found.read_text()))
    begin, end = (load.begin_ns + round(at_s * 1e9) for at_s in load.window_s)
    recorder.window("warmup", load.begin_ns, begin, measured=False)
    recorder.window("serving", begin, end)
    return load


def _record(load: Load, identity: Identity, recorder: Recorder, *, reuse: bool) -> None:
    due = window.measured(load)
    answered = [answer for answer in due if answer.status == OK]
    if not answered:
        raise InputError(
            f"none of {len(due)} requests was answered: {due[0].status if due else 'none was due'}",
            where="task=serving",
        )
    growth = (
        0.0 if identity["load"]["name"] == "closed" else window.queue_growth(window.in_flight(load))
    )
    _record_latencies(due, recorder, saturated=growth > SATURATED)
    requests_per_s, tokens_per_s = window.rates(load)
    recorder.value("request_rate_per_s", "1/s", requests_per_s)
    recorder.value("output_tokens_per_s", "tokens/s", tokens_per_s)
    in_flight = window.in_flight(load)
    recorder.value("in_flight", "1", sum(in_flight) / len(in_flight))
    recorder.value("error_ratio", "1", 1 - len(answered) / len(due))
    recorder.value("queue_growth", "1", growth)
    if identity["load"]["name"] != "closed":
        recorder.value("achieved_ratio", "1", window.achieved_ratio(load))
    lags = [answer.sent_s - answer.due_s for answer in due]
    recorder.value("lag_p99_s", "s", window.quantile(lags, 0.99))
    recorder.value("generator_stalled_ratio", "1", window.stalled_ratio(load))
    recorder.value("generator_cpu_ratio", "1", load.cpu_ratio)
    _record_facts(due, answered, recorder)
    cached = [answer.cached_tokens for answer in answered if answer.cached_tokens is not None]
    if not reuse:
        recorder.engaged("prompt tokens from a cache under load", 0, max(cached, default=0))
    elif cached:
        recorder.value(
            "cached_tokens_ratio",
            "1",
            sum(cached) / sum(answer.prompt_tokens or 0 for answer in answered),
        )


def _record_latencies(due: Sequence[Answer], recorder: Recorder, *, saturated: bool) -> None:
    if saturated:
        reason = "the queue grew all the time: a rate that cannot be sustained has no latency"
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            recorder.absent(name, "s", reason)
        return
    for batch in window.batches(due):
        requests = [window.request_of(answer) for answer in batch if answer.status == OK]
        for name, values in (
            ("ttft_s", [request.ttft_s for request in requests]),
            ("tpot_s", [request.tpot_s for request in requests if request.tpot_s is not None]),
            ("e2e_s", [request.e2e_s for request in requests]),
            ("itl_s", [gap for request in requests for gap in request.itl_s]),
        ):
            if values:
                recorder.samples(name, "s", values, together=True)


def _record_facts(due: Sequence[Answer], answered: Sequence[Answer], recorder: Recorder) -> None:
    failures: dict[str, int] = {}
    for answer in due:
        if answer.status != OK:
            failures[answer.status] = failures.get(answer.status, 0) + 1
    shown = sorted(failures.items(), key=lambda item: -item[1])[:_MOST_ERRORS_SHOWN]
    short = sum(len(answer.arrivals_s) < answer.asked_tokens for answer in answered)
    recorder.fact(
        "requests",
        {
            "due": len(due),
            "answered": len(answered),
            "failed": dict(shown),
            "shorter_than_asked": short,
            "tokens_counted_by": sorted({answer.counted_by for answer in answered}),
        },
    )


def content(identity: Identity) -> dict[str, str | None]:
    """Of the model, of the text that is read, and of the trace."""
    found = content_of(identity["model"])
    prompt = identity["task"]["prompt"]
    if prompt != RANDOM:
        name = texts.PACKAGED_TEXT if prompt == TEXT else prompt
        found |= {"prompt": text_content(name)["text"]}
    if identity["load"]["name"] == "trace":
        found |= {"trace": text_content(identity["load"]["trace"])["text"]}
    return found


_P95, _P99 = Column("ttft_s", "p95"), Column("ttft_s", "p99")

TASK = Task(
    name="serving",
    config=ServingConfig,
    run=run,
    check=check,
    on_engine=True,
    under_load=True,
    own_cores=1,
    preload=engines.preload,
    secrets=engines.secrets,
    packages=engines.packages,
    content=content,
    metrics=(
        MetricSpec("request_rate_per_s", "1/s", "higher", title="requests", meaning="answered"),
        MetricSpec("output_tokens_per_s", "tokens/s", "higher", title="output"),
        MetricSpec("in_flight", "1", title="in flight", meaning="requests unanswered at a time"),
        MetricSpec("error_ratio", "1", "lower", title="errors"),
        MetricSpec("lag_p99_s", "s", title="lag p99", meaning="of sending, behind what was due"),
        MetricSpec("achieved_ratio", "1", title="achieved", meaning="sent of what was due"),
    ),
    columns=(_P95, _P99),
    headline=(
        "ttft_s",
        _P95.name,
        _P99.name,
        "tpot_s",
        "e2e_s",
        "itl_s",
        "request_rate_per_s",
        "output_tokens_per_s",
        "in_flight",
        "error_ratio",
        "lag_p99_s",
    ),
    figures=(
        Scaling("ttft_s", over="load.rate"),
        Scaling("output_tokens_per_s", over="load.concurrency"),
        Distribution("ttft_s"),
        Distribution("itl_s"),
    ),
)
