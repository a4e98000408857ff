"""Stalls of 20 ms, planted in a generator and in its server: only the generator's count."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from orchestrator.attempt import RuleResult
from orchestrator.measure.metric import Value
from orchestrator.tasks.serving import window
from orchestrator.tasks.serving.orders import Load
from orchestrator.telemetry.verdict import judge
from testing.load import Generating
from testing.null_server import null_server
from testing.trial import ok_report
from testing.waiting import until

_STALL_S, _A_MINUTE = 0.020, 10
RULES = yaml.safe_load(Path("conf/verdict/default.yaml").read_text())["rules"]


def stall(process: subprocess.Popen[str]) -> tuple[int, int]:
    """From when to when it stood still, nanoseconds."""
    begin_ns = time.monotonic_ns()
    process.send_signal(signal.SIGSTOP)
    time.sleep(_STALL_S)
    end_ns = time.monotonic_ns()
    process.send_signal(signal.SIGCONT)
    return begin_ns, end_ns


def rule_of(load: Load) -> RuleResult:
    """What the verdict says of the load's stalls."""
    metric = Value("generator_stalled_ratio", "1", window.stalled_ratio(load))
    return next(each for each in judge(ok_report(metric), RULES).rules if each.rule == "stalls")


@dataclass(frozen=True)
class Stalled:
    """A load, and the stalls that were planted while requests were sent and while only read."""

    load: Load
    generator: tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]
    server: tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]

    def seen(self, stalls: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
        """Pauses that the generator saw while something stood still, one a stall."""
        found = []
        for begin_ns, end_ns in stalls:
            begin_s, end_s = ((at - self.load.begin_ns) / 1e9 for at in (begin_ns, end_ns))
            pauses = [p for p in self.load.pauses_s if p[0] < end_s and begin_s < p[0] + p[1]]
            found += [pause for pause in pauses if pause[1] > window.STALL_S][:1]
        return found


@pytest.fixture(scope="module")
def stalled(tmp_path_factory: pytest.TempPathFactory) -> Stalled:
    """Half a second of requests, then only long answers to read; stalls in turn."""
    sends = [(k / 40, {"max_tokens": 130 if k < 4 else 2}) for k in range(20)]
    generator: list[list[tuple[int, int]]] = []
    server: list[list[tuple[int, int]]] = []
    with null_server(0.01, 0.01) as there:
        made = Generating(there.url, sends, tmp_path_factory.mktemp("stalled"))
        with made.started() as process:
            for begun in (1, 20):
                until(lambda begun=begun: len(there.seen()) >= begun, every_s=0.005)
                generator.append([])
                server.append([])
                for _ in range(4):
                    time.sleep(0.03)
                    generator[-1].append(stall(process))
                    time.sleep(0.03)
                    server[-1].append(stall(there.process))
            load = made.load(process)
    return Stalled(load, (generator[0], generator[1]), (server[0], server[1]))


@pytest.mark.parametrize("phase", [0, 1], ids=["sending", "only reading"])
def test_ten_stalls_of_the_generator_a_minute_make_an_attempt_invalid(
    stalled: Stalled, phase: int
) -> None:
    seen = stalled.seen(stalled.generator[phase])
    assert len(seen) == 4
    # The same a minute, spread over a minute: the least that any of them was.
    least_s = min(late_s for _, late_s in seen)
    pauses = tuple((60 * k / _A_MINUTE, least_s) for k in range(_A_MINUTE))
    minute = replace(stalled.load, window_s=(0.0, 60.0), pauses_s=pauses)
    minute = replace(minute, answers=(replace(minute.answers[0], ended_s=60.0),))
    assert rule_of(minute).state == "invalid"
    assert rule_of(stalled.load).state == "invalid"


@pytest.mark.parametrize("phase", [0, 1], ids=["sending", "only reading"])
def test_stalls_of_the_server_are_none_of_the_generator_s(stalled: Stalled, phase: int) -> None:
    # One or the other may stand still by itself meanwhile, on a busy machine.
    assert len(stalled.seen(stalled.server[phase])) < 4
    assert rule_of(replace(stalled.load, pauses_s=())).state == "pass"


@pytest.mark.long
@pytest.mark.parametrize("sending", [True, False], ids=["sending", "only reading"])
def test_a_load_of_twelve_seconds_with_two_stalls_is_invalid(sending: bool, tmp_path: Path) -> None:
    count, tokens = (600, 2) if sending else (4, 1200)
    with null_server(0.01, 0.01) as there:
        sends = [(k / 50, {"max_tokens": tokens}) for k in range(count)]
        made = Generating(there.url, sends, tmp_path)
        with made.started() as process:
            until(there.seen)
            for _ in range(2):
                time.sleep(3.0)
                stall(process)
            assert rule_of(made.load(process)).state == "invalid"
