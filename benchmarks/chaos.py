"""Kills everything that can die while a sweep runs, and counts what came of it.

Short trials on three simulated nodes of two slots, recorded by an ``mlflow server``; a seeded
adversary kills measured processes, their supervisors, nodes (others join), the driver (started
again by the same command) and the tracking server (back after seconds). At the end every trial must
have exactly one measurement, every execution must be accounted for, and nothing may be left.

    python benchmarks/chaos.py [--seed 0 1 2] [--trials 500] [--limit 600]

``--limit``: seconds that a seed may take.

What the adversary does is tied to how many trials have been executed, and not to the clock: a slow
machine sees the same faults. Executions are counted by the trials themselves, in a file that
neither the driver nor the store can touch; trials wait while a fault that is due is not committed.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from benchmarks._machine import arguments, emit, finish
from orchestrator.record.spool import write_whole
from testing.faults import of_attempts, on_cluster
from testing.servers import TrackingServer
from testing.world import (
    SUPERVISOR,
    DriverProcess,
    Nodes,
    World,
    measured,
    named,
)

T = TypeVar("T")

SLEEP_S = 0.3
NODES = 3
ORPHAN_LIMIT_S = 10.0
POLL_S = 0.1
# One fault of a kind for so many trials, and at least one of each.
EVERY = {"child": 12, "worker": 25, "node": 125, "driver": 100, "server": 125}
SERVER_AWAY_S = (1.0, 8.0)
NODE_AWAY_S = (1.0, 5.0)


class Adversary:
    """A plan of faults, fixed by its seed, and the hands that commit them.

    Parameters
    ----------
    seed : int
    trials : int
        The faults are spread over so many executions.
    """

    def __init__(
        self,
        seed: int,
        trials: int,
        nodes: Nodes,
        server: TrackingServer,
        driver: DriverProcess,
        witness: Path,
    ) -> None:
        self._random = random.Random(seed)
        self._nodes = nodes
        self._server = server
        self._driver = driver
        self._witness = witness
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._commit = {
            "child": lambda: self._kill_one(measured(_ours())),
            "worker": lambda: self._kill_one(named(_ours(), SUPERVISOR)),
            "node": self._node_fault,
            "driver": self._driver_fault,
            "server": self._server_fault,
        }
        # By kind; what found nothing to hit is not counted.
        self.faults: Counter[str] = Counter()
        faults = [kind for kind, every in EVERY.items() for _ in range(max(1, trials // every))]
        # All strike while trials remain: the last tenth is left to see them survived.
        self._plan = sorted((self._random.uniform(0.03, 0.9) * trials, kind) for kind in faults)
        self._hold()

    @property
    def busy(self) -> bool:
        """Whether something is still to be brought back."""
        return bool(self._later)

    def act(self, executed: int) -> None:
        """Commit what is due, bring back what was away long enough."""
        now = time.monotonic()
        for due in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove(due)
            due[1]()
        while self._plan and self._plan[0][0] <= executed:
            _, kind = self._plan[0]
            if not self._commit[kind]():
                return  # nothing to hit yet; it stays due
            self._plan.pop(0)
            self.faults[kind] += 1
            self._hold()

    def _hold(self) -> None:
        """Trials go no further than to the next fault."""
        until = self._witness.with_name(f"{self._witness.name}.until")
        if self._plan:
            write_whole(until, b"%d" % self._plan[0][0], durable=False)
        else:
            until.unlink()

    def _node_fault(self) -> bool:
        if len(self._nodes.alive) < 2:
            return False
        self._nodes.kill(self._random.randrange(len(self._nodes.alive)))
        self._after(NODE_AWAY_S, lambda: self._nodes.add(wait=False))
        return True

    def _driver_fault(self) -> bool:
        if self._driver.poll() is not None:
            return False
        # Mostly without a word; SIGTERM lets it end its books, which must come out the same.
        self._driver.send(self._random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        return True

    def _server_fault(self) -> bool:
        if not self._server.up:
            return False
        self._server.kill()
        self._after(SERVER_AWAY_S, self._server.begin)
        return True

    def _kill_one(self, candidates: list[psutil.Process]) -> bool:
        candidates.sort(key=lambda process: process.pid)
        if not candidates:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            self._random.choice(candidates).kill()
            return True
        return False

    def _after(self, span_s: tuple[float, float], back: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + self._random.uniform(*span_s), back))


def _ours() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def run(seed: int, trials: int, limit_s: float) -> bool:
    """One world, one sweep, one adversary; prints the figures, returns whether all came out."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(World())
        server = TrackingServer(world.directory / "mlflow", world.environment)
        stack.callback(server.kill)
        nodes = Nodes(world, NODES)
        stack.callback(nodes.close)
        witness = world.directory / "witness"
        words = on_cluster(
            nodes,
            *(f"task.value=range({trials})", f"task.sleep_s={SLEEP_S}"),
            *(f"task.fault='witness:{witness}'", "sweep.name=chaos", "timeout_s=60"),
            *("tracking=server", f"tracking.uri={server.uri}"),
            # A child killed twice has failed as often as is tried again: not the trial's fault.
            "retry.failed=true",
        )
        driver = DriverProcess(world, words)
        adversary = Adversary(seed, trials, nodes, server, driver, witness)
        ready_s = time.monotonic() - began
        _until_finished(driver, adversary, witness, limit_s)
        wall_s = time.monotonic() - began - ready_s
        orphans = _settled(lambda: of_attempts(world))
        # The same command once more: nothing may run.
        before = _lines(witness)
        driver.start()
        again = driver.wait(120)
        ok = _judge(world, server, witness, trials, orphans, adversary.faults, seed)
        ok &= _check(again == 0 and _lines(witness) == before, "the same command again ran trials")
        emit("chaos.wall_s", round(wall_s, 1), "s", n=trials)
        emit("chaos.driver_starts", driver.starts - 1, "1", n=trials)
        if not ok:
            print(driver.tail(60), file=sys.stderr)
        nodes.close()
        server.kill()
        left = _settled(world.processes)
        ok &= _check(not left, f"left running: {[process.cmdline()[:4] for process in left]}")
        emit("chaos.orphans", len(orphans) + len(left), "1", required="== 0", n=trials)
    return ok


def _until_finished(
    driver: DriverProcess, adversary: Adversary, witness: Path, limit_s: float
) -> None:
    deadline = time.monotonic() + limit_s
    said = 0
    driver.start()
    while True:
        time.sleep(POLL_S)
        executed = len(_lines(witness))
        adversary.act(executed)
        if executed >= said + 50:
            said = executed
            print(f"{executed} executed, {dict(adversary.faults)}", file=sys.stderr)
        if time.monotonic() > deadline:
            raise SystemExit(f"not finished after {limit_s:.0f} s:\n{driver.tail()}")
        code = driver.poll()
        if code is None:
            continue
        if code == 0 and not adversary.busy:
            return
        # Killed, or the store was away when it began: the same command, as a person would.
        if code != 0:
            driver.start()


def _judge(
    world: World,
    server: TrackingServer,
    witness: Path,
    trials: int,
    orphans: list[psutil.Process],
    faults: Counter[str],
    seed: int,
) -> bool:
    """Compare what was executed with what is recorded."""
    runs = _attempt_runs(server.uri)
    measured_by_hash: Counter[str] = Counter()
    recorded = set()
    endings: Counter[str] = Counter()
    for run in runs:
        tags = run.data.tags
        recorded.add(tags["attempt_id"])
        endings[tags.get("outcome", run.info.status)] += 1
        if run.info.status == "FINISHED" and tags.get("outcome") == "ok":
            measured_by_hash[tags["config_hash"]] += 1
    executed = _lines(witness)
    unaccounted = [attempt for attempt in executed if attempt not in recorded]
    open_runs = [run for run in runs if run.info.status == "RUNNING"]
    duplicated = sum(count - 1 for count in measured_by_hash.values())
    emit("chaos.seed", seed, "1")
    for kind in EVERY:
        emit(f"chaos.faults.{kind}", faults[kind], "1", n=trials)
    for outcome, count in sorted(endings.items()):
        emit(f"chaos.attempts.{outcome}", count, "1", n=len(runs))
    count = len(measured_by_hash)
    emit("chaos.executions", len(executed), "1", n=trials)
    figures = [
        emit("chaos.finished_hashes", count, "1", required=f"== {trials}", n=trials),
        emit("chaos.lost", trials - count, "1", required="== 0", n=trials),
        emit("chaos.duplicated", duplicated, "1", required="== 0", n=trials),
        emit("chaos.unaccounted", len(unaccounted), "1", required="== 0", n=len(executed)),
    ]
    spooled = list((world.directory / "state").rglob("*.finish"))
    held = _settled(world.held_directories)
    results = [
        _check(not unaccounted, f"executed and not recorded: {unaccounted}"),
        _check(not open_runs, f"{len(open_runs)} runs never ended"),
        _check(not spooled, f"{len(spooled)} results still in the spool"),
        _check(len(set(executed)) == len(executed), "an attempt was executed twice"),
        _check(not orphans, f"orphans: {[process.cmdline()[:4] for process in orphans]}"),
        _check(not held, f"directories of attempts are still held: {_contents(held)}"),
    ]
    return all((*figures, *results))


def _attempt_runs(uri: str) -> list[Any]:
    """Every attempt's run, through MLflow's own client."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    runs: list[Any] = mlflow.search_runs(
        filter_string="tags.kind = 'attempt'", search_all_experiments=True, output_format="list"
    )
    return runs


def _contents(directories: list[Path]) -> list[str]:
    return [str(path) for directory in directories for path in (directory, *directory.rglob("*"))]


def _settled(look: Callable[[], list[T]]) -> list[T]:
    """What ``look`` still sees when the limit for leaving is over."""
    deadline = time.monotonic() + ORPHAN_LIMIT_S
    while found := look():
        if time.monotonic() > deadline:
            return found
        time.sleep(0.2)
    return []


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def _check(holds: bool, text: str) -> bool:
    if not holds:
        print(f"FAILED: {text}", file=sys.stderr)
    return holds


def main() -> None:
    """Run every seed; exit 1 if one did not come out whole."""
    options = arguments(__doc__, seed=[0, 1, 2], trials=500, limit=600.0)
    results = [run(seed, options.trials, options.limit) for seed in options.seed]
    finish(failed=not all(results))


if __name__ == "__main__":
    main()
