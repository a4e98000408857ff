"""Is the gate right on this machine? Real attempts of a small model, and a slowdown put into some.

Each pair is three times the same trial: a baseline, the same again, and the same with a sleep in
every token that makes it 15 % slower. Every attempt is a process of its own through isolation, one
core each, as many at once as there are cores; the three sides take turns, as a sweep's trials do,
so that drift of the machine hits all alike.

The gate judges by its default rules, and where it says "inconclusive" of the slowed side it is
given what it asks for: some more attempts of every side (``--repeats``), up to ``--most``. At none
of these looks may the same again be a regression; the slowed one must be found at last. ``--model``
is an entry of ``conf/model``.
"""

from __future__ import annotations

import copy
import queue
import random
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks._attempts import attempt, trial_of
from benchmarks._machine import arguments, emit, finish
from orchestrator.attempt import AttemptReport, Trial
from orchestrator.engines import transformers as loading
from orchestrator.host.cpu import usable_cores
from orchestrator.isolate.isolation import Isolation
from orchestrator.plan.places import conf_directory
from orchestrator.report.analyse.gate import GateResult, gate
from orchestrator.report.analyse.gate_rules import RuleSet, load_rules
from orchestrator.report.analyse.measured import samples_of
from orchestrator.statistics.bootstrap import noise_between

SLOWDOWN = 0.15
CALIBRATION = 10
OVERRIDES = (
    "task=inference",
    "quant=fp32",
    "task.prompt_tokens=64",
    "task.new_tokens=16",
    "protocol.warmup=1",
    "protocol.min_repetitions=5",
    "protocol.max_repetitions=10",
    "protocol.max_time_s=1",
)


class Slots:
    """An isolation a core; what is asked of them starts in the order it was asked."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._isolations = {core: Isolation(preload=loading.PRELOAD) for core in usable_cores()}
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for core in self._isolations:
            self._idle.put(core)
        self._threads = ThreadPoolExecutor(len(self._isolations))

    def attempts(self, sleeps_s: Sequence[float]) -> list[AttemptReport]:
        """An attempt for each sleep."""
        return list(self._threads.map(self._attempt, sleeps_s))

    def _attempt(self, token_sleep_s: float) -> AttemptReport:
        """One attempt; a slowed one goes under the same hash, as a regression would."""
        identity = copy.deepcopy(self._trial.identity)
        identity["engine"]["token_sleep_s"] = token_sleep_s
        core = self._idle.get()
        try:
            isolation = self._isolations[core]
            return attempt(isolation, identity, config_hash=self._trial.hash, cores=(core,))
        finally:
            self._idle.put(core)

    def close(self) -> None:
        """End everything."""
        self._threads.shutdown()
        for isolation in self._isolations.values():
            isolation.close()


class Pair:
    """A baseline, the same again and the same slowed, side by side.

    Parameters
    ----------
    sleep_s : float
        What slows every token of the slowed side.
    """

    def __init__(self, trial: Trial, rules: RuleSet, slots: Slots, sleep_s: float) -> None:
        self._trial = trial
        self._rules = rules
        self._slots = slots
        self._sleep_s = sleep_s
        self.sides: dict[str, list[AttemptReport]] = {"base": [], "same": [], "slow": []}

    def measure(self, rounds: int, order: random.Random) -> None:
        """So many more attempts of each side, in rounds."""
        names = [name for _ in range(rounds) for name in order.sample(sorted(self.sides), 3)]
        sleeps_s = [self._sleep_s if name == "slow" else 0.0 for name in names]
        for name, report in zip(names, self._slots.attempts(sleeps_s), strict=True):
            self.sides[name].append(report)

    def judge(self, name: str) -> GateResult:
        """What the gate says of one side against the baseline."""
        trial = self._trial
        sides = ({trial.hash: self.sides[name]}, {trial.hash: self.sides["base"]})
        return gate(*sides, self._rules, configs={trial.hash: trial.identity})


def tpot_s(reports: Sequence[AttemptReport]) -> float:
    """Median of attempts' median time per output token."""
    series = samples_of(reports, "tpot_s")
    return statistics.median(statistics.median(values) for values in series)


def calibrated_sleep_s(slots: Slots) -> float:
    """The sleep that makes a token :data:`SLOWDOWN` slower: a core that slept is slow for a while.

    Asked to sleep for 15 % of a token, it made one 20 to 35 % slower here.
    """
    sleep_s = SLOWDOWN * tpot_s(slots.attempts([0.0] * CALIBRATION))
    for _ in range(2):
        made = slots.attempts([0.0, sleep_s] * CALIBRATION)
        slowdown = tpot_s(made[1::2]) / tpot_s(made[::2]) - 1
        sleep_s *= min(2.0, max(0.3, SLOWDOWN / max(slowdown, 1e-3)))
    return sleep_s


def show(name: str, judged: GateResult) -> None:
    """What was said wrongly, and why."""
    for row in judged.rows:
        if row.state not in ("skipped", "pass"):
            print(f"{name}: {row}", file=sys.stderr)


def main() -> None:
    """Print one JSON line a figure; exit 1 if the gate was wrong once."""
    options = arguments(__doc__, pairs=20, repeats=5, most=40, seed=0, model="random")
    trial = trial_of(*OVERRIDES, f"model={options.model}")
    rules = load_rules(conf_directory() / "gate" / "default.yaml")
    order = random.Random(options.seed)
    false_alarms, found = 0, 0
    slowed: list[float] = []
    attempts: list[int] = []
    everything: list[AttemptReport] = []
    slots = Slots(trial)
    try:
        slots.attempts([0.0, 0.0])  # fills the page cache and the fork servers
        sleep_s = calibrated_sleep_s(slots)
        for number in range(1, options.pairs + 1):
            pair = Pair(trial, rules, slots, sleep_s)
            alarmed = False
            while len(pair.sides["base"]) < options.most:
                pair.measure(options.repeats, order)
                same, slow = pair.judge("same"), pair.judge("slow")
                if same.exit_code == 1:
                    alarmed = True
                    show("same", same)
                if slow.exit_code == 1:
                    break
            else:
                show("slow", slow)
            false_alarms += alarmed
            found += slow.exit_code == 1
            attempts.append(len(pair.sides["base"]))
            slowed.append(tpot_s(pair.sides["slow"]) / tpot_s(pair.sides["base"]) - 1)
            everything += pair.sides["base"] + pair.sides["same"]
            said = f"{slowed[-1]:+.0%}, {slow.state} after {attempts[-1]} attempts a side"
            print(f"pair {number}: {said}; the same again: {same.state}", file=sys.stderr)
    finally:
        slots.close()
    emit("gate_real_false_regressions", false_alarms, "1", required="<= 0", n=options.pairs)
    share = found / options.pairs
    emit("gate_real_slowdowns_found", share, "1", required=">= 1", n=options.pairs)
    emit("gate_real_attempts_a_side_mean", statistics.mean(attempts), "1", n=options.pairs)
    emit("gate_real_attempts_a_side_most", max(attempts), "1", n=options.pairs)
    emit("gate_real_slowdown_median", statistics.median(slowed), "1", n=options.pairs)
    noise = noise_between(samples_of(everything, "tpot_s"))
    if noise is not None:
        emit("gate_real_noise_between", noise, "1", n=len(everything))
    finish()


if __name__ == "__main__":
    main()
