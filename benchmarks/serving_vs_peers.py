"""The load generator and its peers against a server whose answers are known, and a real one.

``python benchmarks/serving_vs_peers.py [--rates 20 100 300 600 1000] [--duration-s 12]``. The null
server (80 ms to the first token, 20 ms between ten) has one core, the client the other: ours,
aiperf and guidellm in turn at each rate, constant arrivals. Of ours also what it adds: the first
token seen since the request was due, without what the server took between reading the request and
writing that token; both by one clock. At ``--beyond`` requests a second ours cannot keep up: the
verdict must say so. At ``--sweep-rates`` ours once more as an attempt of a sweep, beside Ray.

Then llama.cpp's own server with the packaged model, and medians of the three at the same load
(``--real-rate``, ``--real-requests``; 0 leaves it out).

``--peers`` names those that run. Prints one JSON line a figure, and the table on stderr; exit
status 1 where a required figure misses its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import yaml

from benchmarks._load_peers import PEERS, Asked, Printed
from benchmarks._machine import arguments, emit, finish, machine
from orchestrator.host.cpu import usable_cores
from orchestrator.measure.metric import Value
from orchestrator.tasks.serving import window
from orchestrator.tasks.serving.orders import OK, Load
from orchestrator.telemetry.verdict import judge
from testing.load import Generating
from testing.null_server import Running, null_server
from testing.trial import ok_report

FIRST_S, BETWEEN_S, TOKENS = 0.080, 0.020, 10
PROMPT_TOKENS = 16
RULES = Path(__file__).parents[1] / "conf" / "verdict" / "default.yaml"
# Where an issue of ours sets a limit: what is added at the p99, and on average.
P99_AT, MEAN_AT = 300.0, 600.0
REAL_PROMPT_TOKENS, REAL_TOKENS = 128, 8
FIGURES = ("ttft", "itl", "e2e")
_PROMPT_TIME = re.compile(r"prompt eval time = *([0-9.]+) ms")
_EVAL_TIME = re.compile(r"\|  +eval time = *([0-9.]+) ms / *([0-9]+) tokens")


def send(api: str, rate: float, duration_s: float, body: dict[str, Any]) -> tuple[Load, float]:
    """Our generator's load of constant arrivals, and how long it took, start to figures."""
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        # As many again are ready for while the last answers are waited for.
        sends = ((k / rate, body) for k in range(round(rate * (duration_s + 1.0))))
        made = Generating(f"{api}/v1", sends, Path(directory), duration_s=duration_s)
        load = made.load()
    return load, time.monotonic() - begin_s


def broken(load: Load) -> list[str]:
    """Rules of the verdict that the generator breaks."""
    due = window.measured(load)
    metrics = {
        "lag_p99_s": window.quantile([a.sent_s - a.due_s for a in due], 0.99),
        "generator_stalled_ratio": window.stalled_ratio(load),
        "generator_cpu_ratio": load.cpu_ratio,
        "achieved_ratio": window.achieved_ratio(load),
    }
    report = ok_report(*(Value(name, "1", value) for name, value in metrics.items()))
    rules = yaml.safe_load(RULES.read_text())["rules"]
    return [rule.rule for rule in judge(report, rules).rules if rule.state == "invalid"]


def added_s(load: Load, server: Running) -> list[float]:
    """Of each measured request: its TTFT without what the server took."""
    took = {s.user: (s.first_ns or 0) - s.came_ns for s in server.seen()}
    return [
        answer.arrivals_s[0] - answer.due_s - took[str(number)] / 1e9
        for number, answer in enumerate(load.answers)
        if answer.measured and answer.status == OK
    ]


def came_per_s(server: Running) -> float:
    """Requests a second, as the server saw them come."""
    came = [seen.came_ns for seen in server.seen()]
    return (len(came) - 1) / (came[-1] - came[0]) * 1e9


def ours_at(rate: float, options: argparse.Namespace, *, beyond: bool = False) -> list[Any]:
    """Measure and print ours; a row of the table."""
    with null_server(FIRST_S, BETWEEN_S, core=_CORES[0]) as server:
        body = {"prompt": list(range(PROMPT_TOKENS)), "max_tokens": TOKENS}
        load, wall_s = send(server.url.removesuffix("/v1"), rate, options.duration_s, body)
        adds = added_s(load, server)
        came = came_per_s(server)
    due = window.measured(load)
    ttft = [a.arrivals_s[0] - a.due_s for a in due if a.status == OK]
    rules = broken(load)
    name, count = f"serving.{rate:g}_per_s.ours", len(ttft)

    def told(figure: str, value: float, unit: str, limit: str | None = None) -> None:
        emit(f"{name}.{figure}", value, unit, required=None if beyond else limit, n=count)

    added_p99_s, added_mean_s = window.quantile(adds, 0.99), statistics.mean(adds)
    told("ttft_mean_ms", 1e3 * statistics.mean(ttft), "ms")
    told("ttft_p99_ms", 1e3 * window.quantile(ttft, 0.99), "ms")
    told("added_p99_ms", 1e3 * added_p99_s, "ms", "<= 1.0" if rate == P99_AT else None)
    told("added_mean_ms", 1e3 * added_mean_s, "ms", "<= 0.5" if rate == MEAN_AT else None)
    told("lag_p99_ms", 1e3 * window.quantile([a.sent_s - a.due_s for a in due], 0.99), "ms")
    told("cpu_ratio", load.cpu_ratio, "1")
    told("stalled_ratio", window.stalled_ratio(load), "1")
    told("achieved_ratio", window.achieved_ratio(load), "1", ">= 0.99" if not rules else None)
    told("around_load_s", wall_s - options.duration_s, "s", "<= 3")
    if beyond:
        emit(f"{name}.rules_broken", len(rules), "1", required=">= 1")
    ttft_ms = f"{1e3 * statistics.mean(ttft):.2f} ({1e3 * window.quantile(ttft, 0.99):.2f})"
    adds_ms = f"adds {1e3 * added_mean_s:.2f} ({1e3 * added_p99_s:.2f})"
    return ["ours", rate, ttft_ms, f"{came:.1f}", f"{wall_s:.1f}", f"{adds_ms} {', '.join(rules)}"]


def peer_at(peer: str, rate: float, options: argparse.Namespace) -> list[Any]:
    """Measure and print a peer; a row of the table."""
    with null_server(FIRST_S, BETWEEN_S, core=_CORES[0]) as server:
        api = server.url.removesuffix("/v1")
        asked = Asked(api, "schedule", rate, options.duration_s, PROMPT_TOKENS, TOKENS)
        found = PEERS[peer](asked)
        came = came_per_s(server)
    name = f"serving.{rate:g}_per_s.{peer}"
    tail = "p95" if peer == "guidellm" else "p99"
    emit(f"{name}.ttft_mean_ms", found.mean_ttft_ms, "ms", n=found.requests)
    emit(f"{name}.ttft_{tail}_ms", found.tail_ms, "ms", n=found.requests)
    emit(f"{name}.came_per_s", came, "1/s", n=found.requests)
    emit(f"{name}.around_load_s", found.wall_s - options.duration_s, "s")
    ttft_ms = f"{found.mean_ttft_ms:.2f} ({found.tail_ms:.2f})"
    return [peer, rate, ttft_ms, f"{came:.1f}", f"{found.wall_s:.1f}", "warns" * found.warned]


def in_a_sweep(rate: float, options: argparse.Namespace) -> None:
    """The same load as an attempt of ``task=serving``, beside Ray: what it adds there."""
    import pyarrow.parquet

    with (
        null_server(FIRST_S, BETWEEN_S, core=_CORES[0]) as server,
        tempfile.TemporaryDirectory() as directory,
    ):
        words = (
            *("task=serving", "engine=endpoint", f"engine.url={server.url}", "model=random_tiny"),
            *("quant=source", "device=cpu", "verdict=off", f"tracking.root={directory}"),
            *("load=open", f"load.rate={rate}", "load.arrivals=constant", "load.warmup_s=0"),
            *(f"load.duration_s={options.duration_s}", f"task.prompt_tokens={PROMPT_TOKENS}"),
            f"task.new_tokens={TOKENS}",
        )
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            cwd=directory,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, _CORES),
        )
        if done.returncode != 0:
            raise SystemExit(f"the sweep failed:\n{(done.stdout + done.stderr)[-3000:]}")
        (file,) = Path(directory).rglob("requests.parquet")
        rows = pyarrow.parquet.read_table(file).to_pylist()
        # One request came before the load; those of the load came in the order of the rows.
        seen = server.seen()[1 : len(rows) + 1]
    adds = [
        row["arrivals_s"][0] - row["due_s"] - ((each.first_ns or 0) - each.came_ns) / 1e9
        for row, each in zip(rows, seen, strict=True)
        if row["measured"] and row["status"] == OK
    ]
    name = f"serving.{rate:g}_per_s.in_a_sweep"
    emit(f"{name}.added_p99_ms", 1e3 * window.quantile(adds, 0.99), "ms", n=len(adds))
    emit(f"{name}.added_mean_ms", 1e3 * statistics.mean(adds), "ms", n=len(adds))


class RealServer:
    """llama.cpp's own, on one core: its address, and what each request of ours has.

    Attributes
    ----------
    api : str
        As of :class:`benchmarks._load_peers.Asked`.
    body : mapping
        Of each request.
    ordinary : int
        How many ids are text.
    """

    def __init__(self, said: dict[str, Any], log: Path) -> None:
        self.api = said["url"].removesuffix("/v1/completions")
        self.body, self.ordinary = said["body"], said["ordinary"]
        self._log, self._read = log, 0

    def own_ms(self) -> dict[str, float]:
        """What it says itself of what it answered since the last call: medians."""
        text = self._log.read_text(errors="replace")
        new, self._read = text[self._read :], len(text)
        prompt = [float(ms) for ms in _PROMPT_TIME.findall(new)]
        token = [float(ms) / (int(count) - 1) for ms, count in _EVAL_TIME.findall(new)]
        found = {"ttft": statistics.median(prompt), "itl": statistics.median(token)}
        return {**found, "e2e": found["ttft"] + (REAL_TOKENS - 1) * found["itl"]}


@contextmanager
def real_server(core: int) -> Iterator[RealServer]:
    """One in a process of its own."""
    words = [sys.executable, str(Path(__file__).resolve()), "--serve", str(core)]
    pipe = subprocess.PIPE
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        with (
            log.open("w") as said,
            subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=said, text=True) as process,
        ):
            assert process.stdout is not None
            begun = next((line for line in process.stdout if line.startswith("{")), None)
            if begun is None:
                raise SystemExit(f"llama.cpp's server did not start:\n{log.read_text()[-3000:]}")
            server = RealServer(json.loads(begun), log)
            server.own_ms()  # of what it was asked to be ready
            yield server
            process.kill()


def serve(core: int) -> None:
    """Serve the packaged model until standard input ends."""
    os.sched_setaffinity(0, (core,))
    from benchmarks._attempts import trial_of
    from orchestrator.engines import registry as engines
    from orchestrator.engines.port import Work
    from orchestrator.measure import HostClock, Recorder

    identity = trial_of(
        *("task=serving", "engine=llamacpp", "quant=q4_0", "device.threads=1"),
        *(f"task.prompt_tokens={REAL_PROMPT_TOKENS}", f"task.new_tokens={REAL_TOKENS}"),
    ).identity
    # Peers' prompts have a token more or less.
    work = Work(batch_size=4, tokens=2 * (REAL_PROMPT_TOKENS + REAL_TOKENS), served=True)
    with tempfile.TemporaryDirectory() as directory:
        recorder = Recorder(lambda event: None, HostClock(), Path(directory))
        session = engines.load(engines.prepare(identity, recorder, work), work, recorder)
        service = session.service()
        ids = list(session.ordinary_ids)[:REAL_PROMPT_TOKENS]
        session.generate([ids], REAL_TOKENS)
        said = {"url": service.url, "body": service.body, "ordinary": len(session.ordinary_ids)}
        print(json.dumps(said), flush=True)
        sys.stdin.read()


def ours_of_real(asked: Asked, server: RealServer) -> Printed:
    """Our figures of a real server's load."""
    random, begin_s = Random(0), time.monotonic()
    # Later ids are words, of which any follows any.
    ids = range(server.ordinary // 2, server.ordinary)
    sends = [
        (
            k / asked.rate,
            {**server.body, "max_tokens": asked.new_tokens}
            | {"prompt": random.choices(ids, k=asked.prompt_tokens)},
        )
        for k in range(round(asked.rate * asked.duration_s))
    ]
    with tempfile.TemporaryDirectory() as directory:
        load = Generating(f"{asked.api}/v1", sends, Path(directory)).load()
    found = [window.request_of(a) for a in window.measured(load) if a.status == OK]
    ttft = [1e3 * request.ttft_s for request in found]
    return Printed(
        mean_ttft_ms=statistics.mean(ttft),
        tail_ms=window.quantile(ttft, 0.99),
        median_ttft_ms=statistics.median(ttft),
        median_itl_ms=1e3 * statistics.median(request.tpot_s or 0 for request in found),
        median_e2e_ms=1e3 * statistics.median(request.e2e_s for request in found),
        requests=len(found),
        wall_s=time.monotonic() - begin_s,
        warned=bool(broken(load)),
    )


def compare_real(options: argparse.Namespace) -> None:
    """Medians of the three at the same load, in turn; each peer's against ours.

    Also over what the server says itself of the same requests: on a machine that changes meanwhile
    that says more.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *options.peers)}
    with real_server(_CORES[0]) as server:
        duration_s = options.real_requests / options.real_rate
        shape = (options.real_rate, duration_s, REAL_PROMPT_TOKENS, REAL_TOKENS)
        for _ in range(options.rounds):
            for name in found:
                asked = Asked(server.api, "smollm2", *shape)
                made = ours_of_real(asked, server) if name == "ours" else PEERS[name](asked)
                medians = {what: getattr(made, f"median_{what}_ms") for what in FIGURES}
                own = server.own_ms()
                over = {f"{what}_over_own": medians[what] / own[what] for what in FIGURES}
                found[name].append({**medians, **over})
    for what in FIGURES:
        for figure, named, unit in (
            (what, f"median_{what}_ms", "ms"),
            (f"{what}_over_own", f"median_{what}_over_own", "1"),
        ):
            medians = {
                name: statistics.median(each[figure] for each in made)
                for name, made in found.items()
            }
            for name, value in medians.items():
                emit(f"serving.real.{name}.{named}", value, unit, n=options.real_requests)
                if name != "ours":
                    away = abs(medians["ours"] / value - 1)
                    whole = f"serving.real.ours_to_{name}.{named}_away"
                    emit(whole, away, "1", required="<= 0.03", n=options.rounds)


_CORES = usable_cores()


def main() -> None:
    """Measure all that the options name."""
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]))
        return
    options = arguments(
        __doc__,
        rates=(20.0, 100.0, 300.0, 600.0, 1000.0),
        beyond=3000.0,
        sweep_rates=(P99_AT, MEAN_AT),
        duration_s=12.0,
        peers=tuple(PEERS),
        real_rate=1.0,
        real_requests=40,
        rounds=2,
    )
    if len(_CORES) < 2:
        raise SystemExit("the server and the client need a core each")
    machine()  # as it is before this process is put on one of its cores
    os.sched_setaffinity(0, _CORES[-1:])
    rows = []
    for rate in options.rates:
        rows.append(ours_at(rate, options))
        rows += [peer_at(peer, rate, options) for peer in options.peers]
    if options.beyond:
        rows.append(ours_at(options.beyond, options, beyond=True))
    heads = ("", "1/s", "TTFT mean (p99, guidellm p95) ms", "came 1/s", "wall s", "")
    for row in (heads, *rows):
        print("{:9} {:>6} {:>33} {:>9} {:>7}  {}".format(*map(str, row)), file=sys.stderr)
    for rate in options.sweep_rates:
        in_a_sweep(rate, options)
    if options.real_requests:
        compare_real(options)
    finish()


if __name__ == "__main__":
    main()
