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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

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
    Recorder,
    Task,
    first_call,
)
from orchestrator.measure.columns import Column
from orchestrator.measure.figures import Curve, Distribution, Scaling, Waterfall
from orchestrator.measure.options import bounded, options_of
from orchestrator.measure.plain_json import from_json
from orchestrator.measure.series import SERVER_ARTIFACT
from orchestrator.tasks.serving.orders import Load, Orders
from orchestrator.tasks.serving.prompt_file import SUFFIX, Line, read_lines
from orchestrator.tasks.serving.prompts import Prompts
from orchestrator.tasks.serving.recorded import METRICS, record
from orchestrator.tasks.serving.stimulus import Shape, lead_s, limits, shapes, turns_of

RANDOM, TEXT = "random", "text"
DEFAULT_SLOTS = 4
# Answers are waited for so long, or for so many times as a request takes by itself.
_DRAIN_S, _DRAIN_TIMES = 60.0, 10
# Of a text, pieces begin anywhere in so many tokens.
_TEXT_TOKENS = 20_000


@dataclass
class ServingConfig:
    """Options of ``task=serving``.

    Attributes
    ----------
    prompt_tokens, new_tokens : int
        Of each request; their means where ``load.lengths`` is not fixed. Where prompts are lines of
        a file, the most tokens that one may have, and the output of lines that do not say it.
    slots : int or None
        Sequences that the server takes at once, others wait; by default 4. A server that runs
        already has its own.
    prompt : str
        ``random`` ids, ``text`` (Python's own reference, by the model's tokenizer), or a ``.txt``
        or ``.parquet`` file: each prompt is a piece of it. Of a ``.jsonl`` file each line is one:
        ``{"prompt": "a text", "new_tokens": 32}``, the output's length where it likes.
    """

    name: str = "serving"
    prompt_tokens: int = bounded(128, low=1)
    new_tokens: int = bounded(32, low=1)
    slots: int | None = bounded(None, low=1)
    prompt: str = RANDOM


def _shapes(identity: Identity) -> list[Shape]:
    options = options_of(ServingConfig, identity)
    lines = read_lines(options.prompt) if options.prompt.endswith(SUFFIX) else ()
    lengths = options.prompt_tokens, options.new_tokens
    return shapes(identity["load"], *lengths, identity["seed"], lines)


def _work(identity: Identity, planned: Sequence[Shape]) -> Work:
    return Work(
        batch_size=options_of(ServingConfig, identity).slots or DEFAULT_SLOTS,
        tokens=max(shape.tokens for shape in planned),
        named="the longest request, prompt and output",
        served=True,
        reuse=_reuse(identity, planned),
        turns=turns_of(identity["load"]),
    )


def _reuse(identity: Identity, planned: Sequence[Shape]) -> bool:
    """Whether prompts have something in common, so that its reuse is what is measured."""
    return bool(identity["load"]["prefix_share"]) or any(shape.blocks for shape in planned)


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    _check_load(identity)
    _check_lines(identity)
    if identity["task"]["slots"] and engines.is_remote(identity):
        raise ConfigError(
            "has no effect on a server that runs already", where="task.slots", fix="Leave it out"
        )
    return engines.check(identity, _work(identity, _shapes(identity)))


# What a kind of load needs; nothing else of these may be given.
_OF_KIND = {
    "closed": ("concurrency",),
    "open": ("rate", "arrivals"),
    "trace": ("trace", "speed"),
}


def _check_load(identity: Identity) -> None:
    """:class:`ConfigError` for options of a load that make no sense together."""
    load, kind = identity["load"], identity["load"]["kind"]
    needed = {
        **{name: kind == of for of, names in _OF_KIND.items() for name in names},
        "burstiness": load["arrivals"] == "gamma",
        "spread": load["lengths"] != "fixed",
    }
    for name, wanted in needed.items():
        if wanted != (load[name] is not None):
            raise ConfigError(
                "is not given" if wanted else f"has no effect on {_because(load, name)}",
                where=f"load.{name}",
                fix=_EXAMPLES[name],
            )
    if load.get("think_s") and turns_of(load) == 1:
        fix = "Write load.turns=4, too"
        raise ConfigError("has no effect on load.turns=1", where="load.think_s", fix=fix)
    if kind != "trace":
        return
    usual = ServingConfig()
    idle = [
        f"task.{name}"
        for name in ("prompt_tokens", "new_tokens")
        if identity["task"][name] != getattr(usual, name)
    ]
    idle += [f"load.{name}" for name in ("ramp_s", "prefix_share") if load[name]]
    idle += ["load.lengths"] * (load["lengths"] != "fixed")
    idle += ["load.turns"] * (turns_of(load) > 1)
    if idle:
        raise ConfigError("has no effect on load=trace: the trace has it", where=idle[0])
    if not Path(load["trace"]).expanduser().is_file():
        raise ConfigError(
            "no such file", where=f"load.trace={load['trace']}", fix=_EXAMPLES["trace"]
        )


def _check_lines(identity: Identity) -> None:
    """:class:`ConfigError` for options of a load that a file of prompts has itself."""
    load, prompt = identity["load"], identity["task"]["prompt"]
    if prompt not in (RANDOM, TEXT):
        texts.check_text(prompt, where="task.prompt")
    if not prompt.endswith(SUFFIX):
        return
    idle = ["load=trace"] * (load["kind"] == "trace")
    idle += ["load.lengths"] * (load["lengths"] != "fixed")
    idle += ["load.prefix_share"] * bool(load["prefix_share"])
    if idle:
        raise ConfigError("has no effect on a file of prompts: its lines have it", where=idle[0])


_EXAMPLES = {
    "concurrency": "Write load=closed load.concurrency=4",
    "rate": "Write load=open load.rate=2",
    "arrivals": "Write load=open load.arrivals=poisson",
    "burstiness": "Write load=open load.arrivals=gamma load.burstiness=2",
    "trace": "Write load=trace load.trace=FILE",
    "speed": "Write load=trace load.speed=2",
    "spread": "Write load.lengths=lognormal load.spread=0.5",
}


def _because(load: Mapping[str, Any], name: str) -> str:
    if name == "burstiness":
        return f"load.arrivals={load['arrivals']}"
    return "load.lengths=fixed" if name == "spread" else f"load={load['kind']}"


def run(identity: Identity, recorder: Recorder) -> None:
    """Measure one trial; see the module for its phases."""
    planned = _shapes(identity)
    generator = _own_core(identity)
    work = _work(identity, planned)
    session = engines.load(engines.prepare(identity, recorder, work), work, recorder)
    prompts = _prompts(session, identity, planned)
    service = session.service()
    longest = max(turn.new_tokens for shape in planned for turn in shape.turns)
    with recorder.phase("first_call", measured=False), first_call(recorder):
        alone = session.generate([prompts.of(planned[0])], planned[0].new_tokens)
    alone_s = alone.arrivals_s[-1] * longest / planned[0].new_tokens
    orders = _orders(service, identity, generator, max(_DRAIN_S, _DRAIN_TIMES * alone_s))
    with recorder.phase("under_load", measured=False):
        load = _generate(orders, service, planned, prompts, recorder)
    record(load, recorder, work, open_loop=identity["load"]["kind"] != "closed")
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
    if prompt.endswith(SUFFIX):
        read = _reader(session, identity)
        return Prompts(session.ordinary_ids, seed, longest=None, read=read)
    name = texts.PACKAGED_TEXT if prompt == TEXT else prompt
    longest = max(turn.prompt_tokens for shape in planned for turn in shape.turns)
    answers = [turn.new_tokens for shape in planned for turn in shape.turns[:-1]]
    longest = max(longest, *answers) if answers else longest
    (ids,) = texts.text_prompt(session, name, 1, longest + _TEXT_TOKENS)
    return Prompts(ids, seed, longest=longest, prefix_share=share)


def _reader(session: Session, identity: Identity) -> Callable[[Line, bool], list[int]]:
    """Ids of a line by the model's tokenizer; :class:`InputError` where they are too many."""
    where, most = f"task.prompt={identity['task']['prompt']}", identity["task"]["prompt_tokens"]
    tokenizer = session.tokenizer()
    if isinstance(tokenizer, str):
        raise InputError(tokenizer, where="task.prompt", fix="Use task.prompt=random")

    @cache
    def read(line: Line, begins: bool) -> list[int]:
        ids = texts.encoded(tokenizer, session.vocabulary, line.prompt, where=where)
        ids = [*tokenizer.begin_of_text * begins, *ids]
        if len(ids) > most:
            raise InputError(
                f"line {line.number} has {len(ids)} tokens, more than task.prompt_tokens={most}",
                where=where,
                fix=f"Give task.prompt_tokens={len(ids)}, or a shorter line",
            )
        return ids

    return read


def _orders(service: Service, identity: Identity, cores: tuple[int, ...], drain_s: float) -> Orders:
    load = identity["load"]
    requests, duration_s = limits(load)
    return Orders(
        url=service.url,
        key_variable=service.key_variable,
        cores=cores,
        concurrency=load["concurrency"],
        lead_s=lead_s(load),
        ramp_s=float(load["ramp_s"]),
        requests=requests,
        duration_s=duration_s,
        drain_s=drain_s,
        think_s=float(load.get("think_s", 0.0)),
        metrics_url=service.metrics_url,
    )


def _bodies(
    service: Service, number: int, shape: Shape, prompts: Prompts
) -> Iterator[dict[str, Any]]:
    """Of each turn of a conversation, or of a single request."""
    own = {} if service.salt is None else {service.salt: f"{service.body[service.salt]}-{number}"}
    more: Mapping[str, Any] = {}
    for turn, prompt in zip(shape.turns, prompts.turns(shape), strict=True):
        yield {**service.body, **own, **more, "prompt": prompt, "max_tokens": turn.new_tokens}
        more = service.goes_on


def _generate(
    orders: Orders,
    service: Service,
    planned: Sequence[Shape],
    prompts: Prompts,
    recorder: Recorder,
) -> Load:
    """Run the generator to its end; what the orders say is in files that are gone then."""
    with tempfile.TemporaryDirectory() as directory:
        told, found, said = (Path(directory, name) for name in ("orders", "answers", "metrics"))
        with told.open("w") as lines:
            lines.write(f"{json.dumps(asdict(orders))}\n")
            for number, shape in enumerate(planned):
                bodies = list(_bodies(service, number, shape, prompts))
                lines.write(f"{json.dumps({'due_s': shape.due_s, 'bodies': bodies})}\n")
        command, variables = own_command(
            "orchestrator.tasks.serving.generator",
            *(told, found, recorder.artifact("requests.parquet"), said),
        )
        with subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as generator:
            assert generator.stdout is not None
            for line in generator.stdout:
                recorder.progress(_told(json.loads(line)))
        if generator.returncode:
            raise InputError(
                f"the load generator ended with status {generator.returncode}; its log says why",
                where="task=serving",
            )
        load: Load = from_json(Load, json.loads(found.read_text()))
        if said.exists():
            recorder.artifact(SERVER_ARTIFACT).write_bytes(said.read_bytes())
    begin, end = (load.begin_ns + round(at_s * 1e9) for at_s in load.window_s)
    recorder.window("warmup", load.begin_ns, begin, measured=False)
    recorder.window("serving", begin, end)
    return load


def _told(seen: Mapping[str, Any]) -> str:
    """How far a load is, from a line of the generator's."""
    text = f"{seen['done']}/{seen['due']} requests, {seen['in_flight']} in flight"
    p95_s = seen["ttft_p95_s"]
    return text if p95_s is None else f"{text}, TTFT p95 {p95_s:.3g} s"


def content(identity: Identity) -> dict[str, str | None]:
    """Of the model, of the text that is read, and of the trace."""
    found = content_of(identity["model"])
    prompt = identity["task"]["prompt"]
    if prompt != RANDOM:
        name = texts.PACKAGED_TEXT if prompt == TEXT else prompt
        found |= {"prompt": text_content(name)["text"]}
    if identity["load"]["kind"] == "trace":
        found |= {"trace": text_content(identity["load"]["trace"])["text"]}
    return found


_P95, _P99 = Column("ttft_s", "p95"), Column("ttft_s", "p99")

TASK = Task(
    name="serving",
    config=ServingConfig,
    run=run,
    unread=("protocol",),
    check=check,
    on_engine=True,
    under_load=True,
    own_cores=1,
    preload=engines.preload,
    secrets=engines.secrets,
    packages=engines.packages,
    content=content,
    metrics=METRICS,
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
        Scaling(_P95.name, over="load.rate"),
        Scaling("ttft_s", over="load.concurrency"),
        Scaling("output_tokens_per_s", over="load.concurrency"),
        Curve(
            "queue",
            "Requests in flight over time",
            "s since the load began",
            "requests in flight",
            "Unanswered requests as each came; a line that only rises is a server that cannot keep"
            " up.",
        ),
        Curve(
            "ttft_by_turn",
            "TTFT by turn",
            "turn of the conversation",
            "median TTFT, s",
            "Each turn's prompt is longer; what the server still has of those before is not read"
            " again.",
        ),
        Distribution("ttft_s"),
        Distribution("itl_s"),
        Waterfall(
            "slowest", "The slowest requests", "From when each was due to its last token, of"
        ),
    ),
)
