"""How often a bisection names the right package: planted slowdowns of 10 % among eight packages.

Attempts are noise that was recorded on a real machine: one cheap trial measured many times in a
row, of each attempt its median, replayed in stretches (``testing/bisected.py``). One of eight
packages that differ makes the trial 10 % slower, or none does. The search, its rounds and the judge
are the command's own.

Right is: that package and no other. Required is a share that is not significantly less than 95 %, a
culprit in no search without a change, and at most 2 log2(8) + 4 steps in the median.

Run it as ``python benchmarks/bisecting.py``; ``--searches 20`` for a quick look. Seeds are those of
the tests: ``ORCHESTRATOR_TEST_SEED`` gives others. ``--record STORE --metric itl_s`` writes the
record from a store that holds one trial with many attempts, instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from benchmarks._machine import arguments, emit, finish, machine
from orchestrator.plan.schema import TrackingConfig
from orchestrator.record import open_store
from orchestrator.report.analyse.measured import samples_of, valid
from testing.bisected import (
    PACKAGES,
    RECORDED,
    Bisected,
    at_least_expected,
    recorded,
    searches,
    spread,
)

SEARCHES = 200
SLOWER = 1.10
RIGHT = 0.95
MOST_STEPS = 2 * np.log2(len(PACKAGES)) + 4
_LEAST_ATTEMPTS = 60


def record(root: str, metric: str) -> None:
    """Write the medians of the trial with most attempts, in the order they were made."""
    store = open_store(TrackingConfig(root=root))
    config, found = max(store.attempts().items(), key=lambda pair: len(pair[1]))
    reports = sorted(valid(store.reports({config: found})[config]), key=lambda r: r.started_at)
    medians = [float(np.median(samples)) for samples in samples_of(reports, metric)]
    if len(medians) < _LEAST_ATTEMPTS:
        raise SystemExit(f"{len(medians)} attempts are too few: {_LEAST_ATTEMPTS} are needed")
    about = {
        "metric": metric,
        "trial": config[:12],
        "machine": machine(),
        "flagged": sum(report.verdict.state == "flagged" for report in reports),
        "medians_s": [float(f"{median:.5g}") for median in medians],
    }
    RECORDED.write_text(json.dumps(about, indent=1) + "\n")


def report(name: str, found: Sequence[Bisected]) -> None:
    """What these searches cost."""
    steps = [len(each.answer.steps) for each in found]
    limit = f"<= {MOST_STEPS:g}" if name == "planted" else None
    emit(f"bisect.{name}.steps", float(np.median(steps)), "1", required=limit, n=len(found))
    emit(f"bisect.{name}.rounds", float(np.median([f.rounds for f in found])), "1", n=len(found))
    undecided = sum(each.answer.state == "undecided" for each in found)
    emit(f"bisect.{name}.undecided", undecided / len(found), "1", n=len(found))


def main() -> None:
    """Exit 0 if every figure is within what is required."""
    given = arguments(__doc__, searches=SEARCHES, record="", metric="itl_s")
    if given.record:
        return record(given.record, given.metric)
    medians = np.array(recorded()["medians_s"])
    in_turn = float(np.diff(np.log(medians)).std(ddof=1))
    emit("bisect.noise", spread(medians), "1", n=medians.size)
    emit("bisect.noise.of_a_difference_in_turn", in_turn, "1", n=medians.size - 1)
    count = given.searches
    slow = searches(True, count, SLOWER)
    least = at_least_expected(count, RIGHT) / count
    right = sum(each.right for each in slow) / count
    emit("bisect.planted.right", right, "1", required=f">= {least:g}", n=count)
    emit("bisect.planted.innocent_named", sum(each.wrong for each in slow) / count, "1", n=count)
    report("planted", slow)
    calm = searches(False, count, SLOWER)
    named = sum(each.wrong for each in calm) / count
    emit("bisect.nothing.culprit_named", named, "1", required="<= 0", n=count)
    report("nothing", calm)
    return finish()


if __name__ == "__main__":
    main()
