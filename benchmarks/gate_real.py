"""Is the gate right on this machine? Real attempts of a small model, and a slowdown put into some.

Each pair is three times the same trial: a baseline, the same again, and the same with a sleep in
every token that makes it 15 % slower. Every attempt is a process of its own through isolation, and
the three sides take turns, so that drift of the machine hits all alike. The gate judges by its
default rules: the same again must never be a regression, the slowed one always.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._machine import emit
from orchestrator.attempt import AttemptReport, AttemptSpec, Outcome, Slot
from orchestrator.isolate import Isolation
from orchestrator.measure import Samples
from orchestrator.measure.statistics import noise_between
from orchestrator.plan import build, conf_directory
from orchestrator.report.compare import samples_of
from orchestrator.report.gate import gate
from orchestrator.report.gate_rules import load_rules
from tasks import loading

SLOWDOWN = 0.15
OVERRIDES = (
    "task=inference",
    "quant=fp32",
    "device=cpu",
    "task.prompt_tokens=64",
    "task.new_tokens=16",
    "protocol.warmup=1",
    "protocol.min_repetitions=10",
    "protocol.max_repetitions=20",
    "protocol.max_time_s=2",
)


class Bench:
    """Makes attempts of one trial, with or without a sleep in each token."""

    def __init__(self, isolation: Isolation, identity: dict[str, Any], config_hash: str) -> None:
        self._isolation = isolation
        self._identity = identity
        self._hash = config_hash
        self._slot = Slot("node", "host", tuple(sorted(os.sched_getaffinity(0))))
        self._made = 0

    def attempt(self, token_sleep_s: float = 0.0) -> AttemptReport:
        """One attempt; a slowed one goes under the same hash, as a regression would."""
        self._made += 1
        identity = copy.deepcopy(self._identity)
        identity["task"]["token_sleep_s"] = token_sleep_s
        spec = AttemptSpec(f"gate-{self._made}", self._hash, identity)
        *_, report = self._isolation.run(spec, self._slot)
        if not isinstance(report, AttemptReport) or report.outcome is not Outcome.OK:
            raise SystemExit(f"attempt ended badly: {getattr(report, 'reason', report)}")
        return report


def tpot_s(report: AttemptReport) -> float:
    """Median time per output token of one attempt."""
    metric = report.metrics["tpot_s"]
    assert isinstance(metric, Samples)
    return statistics.median(metric.values)


def main() -> int:
    """Print one JSON line a figure; 1 if the gate was wrong once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="random", help="conf/model entry")
    options = parser.parse_args()
    overrides = (*OVERRIDES, f"model={options.model}")
    (trial,) = build(overrides, device_kind=lambda cluster: "cpu").trials
    rules = load_rules(conf_directory() / "gate" / "default.yaml")
    order = random.Random(options.seed)
    false_alarms, found, slowed, everything = 0, 0, [], []
    with Isolation(preload=loading.PRELOAD) as isolation:
        bench = Bench(isolation, trial.identity, trial.hash)
        bench.attempt()  # fills the page cache and the fork server
        sleep_s = SLOWDOWN * statistics.median(tpot_s(bench.attempt()) for _ in range(3))
        for _ in range(options.pairs):
            sides: dict[str, list[AttemptReport]] = {"base": [], "same": [], "slow": []}
            for _ in range(options.repeats):
                for side in order.sample(sorted(sides), len(sides)):
                    sides[side].append(bench.attempt(sleep_s if side == "slow" else 0.0))
            base = {trial.hash: sides["base"]}
            configs = {trial.hash: trial.identity}
            same = gate({trial.hash: sides["same"]}, base, rules, configs=configs)
            slow = gate({trial.hash: sides["slow"]}, base, rules, configs=configs)
            false_alarms += same.exit_code == 1
            found += slow.exit_code == 1
            for name, wrong in (("same", same.exit_code == 1), ("slow", slow.exit_code != 1)):
                if wrong:
                    judged = same if name == "same" else slow
                    for row in judged.rows:
                        if row.state != "skipped":
                            print(f"{name}: {row}", file=sys.stderr)
            medians = [statistics.median(map(tpot_s, sides[side])) for side in ("base", "slow")]
            slowed.append(medians[1] / medians[0] - 1)
            everything += sides["base"] + sides["same"]
    emit("gate_real_false_regressions", false_alarms, "1", required="<= 0", n=options.pairs)
    emit("gate_real_slowdowns_found", found / options.pairs, "1", required=">= 1", n=options.pairs)
    emit("gate_real_slowdown_median", statistics.median(slowed), "1", n=options.pairs)
    noise = noise_between(samples_of(everything, "tpot_s"))
    if noise is not None:
        emit("gate_real_noise_between", noise, "1", n=len(everything))
    return int(false_alarms > 0 or found < options.pairs)


if __name__ == "__main__":
    sys.exit(main())
