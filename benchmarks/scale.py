"""Many small trials through the whole way: plan, Ray, isolation, telemetry, spool, MLflow.

    python benchmarks/scale.py [--trials 10000] [--slots-busy 20]

Empty trials (``task=noop``) run on this machine and are recorded in the embedded store. At half of
them Ctrl-C is pressed; the same command then makes the rest, and nothing twice. Once more, and it
must say quickly that nothing is left. ``--slots-busy N`` then runs N trials of ten seconds and
tells which share of slot time was inside attempts; 0 leaves that out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._machine import emit
from orchestrator.record import open_store
from orchestrator.record.drivers import drivers_directory, read_drivers
from orchestrator.record.embedded import EmbeddedStore

ROOT = Path(__file__).resolve().parents[1]
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
    """A directory with a store, and the command that is run there."""

    def __init__(self, directory: Path, words: Sequence[str]) -> None:
        self.directory = directory
        self.errors = directory / "errors.txt"
        store = open_store({"kind": "embedded", "root": str(directory / "mlruns")})
        assert isinstance(store, EmbeddedStore)
        self.store = store
        self._words = [sys.executable, "-m", "orchestrator", *words]
        local = directory / "local"
        local.mkdir(mode=0o700, exist_ok=True)
        self._environment = {
            **os.environ,
            "ORCHESTRATOR_LOCAL_DIR": str(local),
            "PYTHONPATH": str(ROOT),
        }

    @contextlib.contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        """The command, running; it is killed at the end if it still is.

        It says a line an attempt: into a file, for a pipe that nobody empties would stop it.
        """
        with open(self.directory / "output.txt", "w") as output, open(self.errors, "w") as errors:
            process = subprocess.Popen(
                self._words,
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def leg(self, name: str, *, warm_from: int = 1, stop_at: int | None = None) -> Leg:
        """Run the command to its end, or press Ctrl-C when ``stop_at`` attempts have ended."""
        leg = Leg(warm_from)
        began_s = said_s = time.monotonic()
        with self.started() as process:
            seen = psutil.Process(process.pid)
            pressed = False
            while process.poll() is None:
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
                    process.send_signal(signal.SIGINT)
            leg.code = process.wait()
        leg.wall_s = time.monotonic() - began_s
        if leg.code not in (0, 130):
            said = self.errors.read_text()
            raise SystemExit(f"{name} ended with {leg.code}:\n{said[-3000:]}")
        return leg

    def until_said(self, pattern: str) -> tuple[float, float]:
        """Seconds until the command has said ``pattern``, and until it has ended."""
        began_s = time.monotonic()
        said_s = float("nan")
        with self.started() as process:
            while said_s != said_s and process.poll() is None:
                time.sleep(READ_EVERY_S)
                if re.search(pattern, self.errors.read_text()):
                    said_s = time.monotonic() - began_s
            code = process.wait()
            if said_s != said_s and re.search(pattern, self.errors.read_text()):
                said_s = time.monotonic() - began_s
        if code != 0 or said_s != said_s:
            raise SystemExit(f"it never said {pattern!r} (exit code {code})")
        return said_s, time.monotonic() - began_s

    def _ended(self) -> int | None:
        """What the driver tells other terminals."""
        for state in read_drivers(drivers_directory(self.store.spool_root)):
            return sum(state.outcomes.values())
        return None


def scale(directory: Path, count: int) -> bool:
    """``count`` empty trials, stopped half way; returns whether every limit was kept."""
    place = Place(directory, ["task=noop", f"task.value=range({count})", "device=cpu"])
    warm_from = max(1, round(WARM_SHARE * count))
    first = place.leg("first half", warm_from=warm_from, stop_at=count // 2)
    second = place.leg("second half", warm_from=warm_from)
    attempts = place.store.attempts()
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
    held = emit("scale.trials_per_s", rate, "1/s", required=">= 12", n=count)
    emit("scale.wall_s", sum(leg.wall_s for leg in legs), "s", n=count)
    name = "scale.driver_memory_growth_bytes"
    held &= emit(name, growth_bytes, "bytes", required="< 100000000", n=count)
    emit("scale.interrupted_after", first.counts[-1][1], "1", n=count)
    held &= emit("scale.measured_trials", len(ok), "1", required=f"== {count}", n=count)
    held &= emit("scale.repeated", repeated, "1", required="== 0", n=count)
    for outcome, number in sorted(others.items()):
        emit(f"scale.attempts.{outcome}", number, "1", n=count)
    held &= emit("scale.again_said_s", again_s, "s", required="<= 10", n=count)
    emit("scale.again_ended_s", whole_s, "s", n=count)
    return held and first.code == 130


def slots_busy(directory: Path, count: int) -> bool:
    """``count`` trials of ten seconds on two slots: slot time inside attempts."""
    words = ["task=noop", f"task.value=range({count})", f"task.sleep_s={SLEEP_S}", "device=cpu"]
    place = Place(directory, [*words, "cluster.cpus=2"])
    place.leg("ten-second trials")
    spans = [s for group in place.store.attempts().values() for s in group if s.outcome == "ok"]
    began_s = min(span.started_at for span in spans)
    ended_s = max(span.ended_at or 0.0 for span in spans)
    inside_s = sum((span.ended_at or 0.0) - span.started_at for span in spans)
    share = inside_s / (2 * (ended_s - began_s))
    held = emit("scale.slot_time_inside_attempts", share, "1", required=">= 0.97", n=count)
    emit("scale.attempt_beyond_sleep_s", inside_s / len(spans) - SLEEP_S, "s", n=count)
    return held and len(spans) == count


def main() -> None:
    """Measure and print; exit 1 if a limit was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots-busy", type=int, default=20, metavar="N")
    options = parser.parse_args()
    held = True
    # Short: Ray's sockets lie below it, and their paths have at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="scale-", dir="/tmp"))
    try:
        for name, measure, count in (
            ("empty", scale, options.trials),
            ("busy", slots_busy, options.slots_busy),
        ):
            if count:
                (directory / name).mkdir()
                held &= measure(directory / name, count)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
