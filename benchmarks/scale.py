"""Many small trials through the whole way: plan, Ray, isolation, telemetry, spool, MLflow.

    python benchmarks/scale.py [--trials 10000] [--slots-busy 20]

Empty trials (``task=noop``) run on this machine and are recorded in the embedded store. At half of
them Ctrl-C is pressed; the same command then makes the rest, and nothing twice. Once more, and it
must say quickly that nothing is left. All of them are looked up too. ``--slots-busy N`` then runs N
trials of ten seconds and tells which share of slot time was inside attempts; 0 leaves that out.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from benchmarks._machine import arguments, emit, finish
from orchestrator.record import open_store
from orchestrator.record.drivers import drivers_directory, read_drivers
from orchestrator.record.embedded import EmbeddedStore
from testing.world import DriverProcess, World

POLL_S = 0.25
READ_EVERY_S = 0.02
SAY_EVERY_S = 15.0
SLEEP_S = 10.0
# Of all trials: so many of each leg are start-up (interpreters, Ray, fork servers, MLflow).
WARM_SHARE = 0.1


@dataclass
class Leg:
    """One run of the command, as seen from outside.

    Attributes
    ----------
    warm_from : int
        So many attempts are start-up.
    counts : list of tuple
        Monotonic time (s), attempts ended so far, the driver's resident bytes.
    code : int
        Exit code.
    wall_s : float
        From start to exit.
    """

    warm_from: int = 1
    counts: list[tuple[float, int, int]] = field(default_factory=list)
    code: int = -1
    wall_s: float = 0.0

    def warm(self) -> list[tuple[float, int, int]]:
        """What was seen after the start-up."""
        return [seen for seen in self.counts if seen[1] >= self.warm_from]

    def rate(self) -> float:
        """Attempts a second after the start-up."""
        warm = self.warm()
        span_s = warm[-1][0] - warm[0][0] if len(warm) > 1 else 0.0
        return (warm[-1][1] - warm[0][1]) / span_s if span_s else float("nan")

    def growth_bytes(self) -> int:
        """How much more memory the driver held at the end than after the start-up."""
        warm = self.warm()
        return max(seen[2] for seen in warm) - warm[0][2] if warm else 0


class Place:
    """A world with a store, and the command that is run there."""

    def __init__(self, world: World, words: Sequence[str]) -> None:
        store = open_store({"kind": "embedded", "root": str(world.directory / "mlruns")})
        assert isinstance(store, EmbeddedStore)
        self.store = store
        self._driver = DriverProcess(world, words)

    def leg(self, name: str, *, warm_from: int = 1, stop_at: int | None = None) -> Leg:
        """Run the command to its end, or press Ctrl-C when ``stop_at`` attempts have ended."""
        leg = Leg(warm_from)
        began_s = said_s = time.monotonic()
        driver = self._driver
        driver.start()
        assert driver.process is not None
        seen = psutil.Process(driver.process.pid)
        pressed = False
        while driver.poll() is None:
            time.sleep(POLL_S)
            now = time.monotonic()
            ended = self._ended()
            if ended is None:
                continue
            with contextlib.suppress(psutil.Error):
                leg.counts.append((now, ended, seen.memory_info().rss))
            if now - said_s > SAY_EVERY_S:
                said_s = now
                print(f"{name}: {ended} ended, {leg.rate():.1f}/s", file=sys.stderr)
            if stop_at is not None and ended >= stop_at and not pressed:
                pressed = True
                driver.send(signal.SIGINT)
        leg.code = driver.wait()
        leg.wall_s = time.monotonic() - began_s
        if leg.code not in (0, 130):
            raise SystemExit(f"{name} ended with {leg.code}:\n{driver.tail()}")
        return leg

    def until_said(self, words: str) -> tuple[float, float]:
        """Seconds until the command has said ``words``, and until it has ended."""
        began_s = time.monotonic()
        said_s: float | None = None
        self._driver.start()
        ended = False
        while said_s is None and not ended:
            time.sleep(READ_EVERY_S)
            ended = self._driver.poll() is not None  # before its last words are looked for
            if words in self._driver.log.read_text():
                said_s = time.monotonic() - began_s
        code = self._driver.wait()
        if code != 0 or said_s is None:
            raise SystemExit(f"it never said {words!r} (exit code {code})")
        return said_s, time.monotonic() - began_s

    def _ended(self) -> int | None:
        """What the driver tells other terminals."""
        for state in read_drivers(drivers_directory(self.store.spool_root)):
            return sum(state.outcomes.values())
        return None


def scale(world: World, count: int) -> bool:
    """``count`` empty trials, stopped half way; returns whether Ctrl-C ended the first half."""
    place = Place(world, ["task=noop", f"task.value=range({count})", "device=cpu"])
    warm_from = max(1, round(WARM_SHARE * count))
    first = place.leg("first half", warm_from=warm_from, stop_at=count // 2)
    second = place.leg("second half", warm_from=warm_from)
    began_s = time.perf_counter()
    attempts = place.store.attempts()
    lookup_s = time.perf_counter() - began_s
    ok = Counter(s.config_hash for group in attempts.values() for s in group if s.outcome == "ok")
    others = Counter(
        str(s.outcome) for group in attempts.values() for s in group if s.outcome != "ok"
    )
    repeated = sum(number - 1 for number in ok.values())
    legs = (first, second)
    warm_s = sum(leg.warm()[-1][0] - leg.warm()[0][0] for leg in legs)
    warm = sum(leg.warm()[-1][1] - leg.warm()[0][1] for leg in legs)
    rate = warm / warm_s
    growth_bytes = sum(leg.growth_bytes() for leg in legs)
    again_s, whole_s = place.until_said("nothing left to do")
    emit("scale.trials_per_s", rate, "1/s", required=">= 12", n=count)
    emit("scale.wall_s", sum(leg.wall_s for leg in legs), "s", n=count)
    name = "scale.driver_memory_growth_bytes"
    emit(name, growth_bytes, "bytes", required="< 100000000", n=count)
    emit("scale.interrupted_after", first.counts[-1][1], "1", n=count)
    emit("scale.measured_trials", len(ok), "1", required=f"== {count}", n=count)
    emit("scale.repeated", repeated, "1", required="== 0", n=count)
    for outcome, number in sorted(others.items()):
        emit(f"scale.attempts.{outcome}", number, "1", n=count)
    emit("scale.again_said_s", again_s, "s", required="<= 10", n=count)
    emit("scale.lookup_s", lookup_s, "s", required="<= 1", n=count)
    emit("scale.again_ended_s", whole_s, "s", n=count)
    return first.code == 130


def slots_busy(world: World, count: int) -> bool:
    """``count`` trials of ten seconds on two slots; returns whether all were measured."""
    words = ["task=noop", f"task.value=range({count})", f"task.sleep_s={SLEEP_S}", "device=cpu"]
    place = Place(world, [*words, "cluster.cpus=2"])
    place.leg("ten-second trials")
    spans = [s for group in place.store.attempts().values() for s in group if s.outcome == "ok"]
    began_s = min(span.started_at for span in spans)
    ended_s = max(span.ended_at or 0.0 for span in spans)
    inside_s = sum((span.ended_at or 0.0) - span.started_at for span in spans)
    share = inside_s / (2 * (ended_s - began_s))
    emit("scale.slot_time_inside_attempts", share, "1", required=">= 0.97", n=count)
    emit("scale.attempt_beyond_sleep_s", inside_s / len(spans) - SLEEP_S, "s", n=count)
    return len(spans) == count


def main() -> None:
    """Measure and print; exit 1 if a limit was not kept."""
    options = arguments(__doc__, trials=10_000, slots_busy=20)
    whole = True
    for measure, count in ((scale, options.trials), (slots_busy, options.slots_busy)):
        if count:
            with World() as world:
                whole &= measure(world, count)
    finish(failed=not whole)


if __name__ == "__main__":
    main()
