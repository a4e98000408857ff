"""The load generator, a real process: what a server saw of it, and what it says of bad ones.

What is due and when comes from these tests, what came and when from the server's own record.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pyarrow.parquet
import pytest

from orchestrator.tasks.serving import window
from orchestrator.tasks.serving.orders import BEAT_S, OK, Load
from orchestrator.telemetry.recorded_series import read_histories
from testing.load import Generating
from testing.null_server import STILL_S, Running, Seen, null_server
from testing.seeds import drawing_seed
from testing.waiting import PATIENCE_S, until

FAILED = "the connection failed: "
_RATE = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with null_server(0.02, 0.01) as running:
        yield running


@dataclass(frozen=True)
class Steady:
    """A load of Poisson arrivals: when each was to come, and what came of it, by both."""

    due: list[float]
    load: Load
    seen: list[Seen]
    table: Path
    metrics: Path
    before: int


@pytest.fixture(scope="module")
def steady(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Steady:
    """Answers take 0.2 s; far more is due than is measured."""
    random, due = Random(drawing_seed()), [0.0]
    while due[-1] < 20.0:
        due.append(due[-1] + random.expovariate(_RATE))
    sends = [(at_s, {"max_tokens": 20}) for at_s in due]
    directory = tmp_path_factory.mktemp("steady")
    exported = server.url.replace("/v1", "/metrics")
    asked: dict[str, Any] = {"lead_s": 0.1, "duration_s": 0.8, "metrics_url": exported}
    made = Generating(server.url, sends, directory, **asked)
    before = len(server.seen())
    load = made.load()
    return Steady(due, load, server.seen()[before:], made.table, made.metrics, before)


def test_no_request_comes_before_it_is_due_and_what_is_late_is_told(steady: Steady) -> None:
    load = steady.load
    # Two that are due at almost the same time may come in either order.
    seen = sorted(steady.seen, key=lambda each: int(each.user or ""))
    assert [each.user for each in seen] == [str(number) for number in range(len(load.answers))]
    due = steady.due[: len(seen)]
    came_s = [(each.came_ns - load.begin_ns) / 1e9 for each in seen]
    for answer, at_s, came in zip(load.answers, due, came_s, strict=True):
        assert at_s - 1e-8 < answer.sent_s < came
        assert answer.due_s == pytest.approx(at_s, abs=1e-8)
        # Whatever kept it from sending kept it from its beats too.
        stood = [at + late for at, late in load.pauses_s if at < answer.sent_s]
        assert answer.sent_s - at_s < 3 * BEAT_S or max(stood, default=0.0) > at_s


def test_it_goes_on_while_measured_requests_wait_and_no_longer(steady: Steady) -> None:
    load = steady.load
    assert load.window_s == pytest.approx((0.1, 0.9))
    measured = window.measured(load)
    inside = [at_s for at_s in steady.due if 0.1 <= at_s < 0.9]
    assert [answer.due_s for answer in measured] == pytest.approx(inside, abs=1e-8)
    assert {answer.status for answer in measured} == {OK}
    last_s = max(answer.ended_s or inf for answer in measured)
    after = [answer for answer in load.answers if answer.due_s >= 0.9]
    assert 0.9 < max(answer.due_s for answer in after) <= last_s
    # Those still on their way were let go.
    assert any(answer.ended_s is None for answer in after)


def test_a_load_that_ends_with_its_last_request_is_measured_until_that_is_due(
    server: Running, tmp_path: Path
) -> None:
    sends = [(k // 4 / 10, {}) for k in range(12)]
    load = Generating(server.url, sends, tmp_path).load()
    assert load.window_s == pytest.approx((0.0, 0.2))
    assert len(window.measured(load)) == 12


def test_every_request_is_a_row_of_a_table(steady: Steady) -> None:
    rows = pyarrow.parquet.read_table(steady.table).to_pylist()
    for row, answer in zip(rows, steady.load.answers, strict=True):
        assert {**row, "arrivals_s": tuple(row["arrivals_s"])} == vars(answer)


def test_what_the_server_exports_of_itself_is_a_series(steady: Steady) -> None:
    histories = read_histories(steady.metrics.read_bytes())
    assert histories.origin_ns == steady.load.begin_ns
    seen = histories.get("server", "seen_total")
    assert seen is not None
    assert 0 <= seen.t_s[0] < steady.load.window_s[1]
    # It may have been asked before the first request, never after the last.
    assert set(seen.values) <= set(range(steady.before, steady.before + len(steady.seen) + 1))


SAID = {
    "429": "HTTP 429: not now",
    "500": "HTTP 500: not now",
    "rubbish": FAILED,
    "half": FAILED,
    "close": FAILED,
    "garbage": "a chunk of its answer is no JSON",
    "error": "an error in its answer: oh",
    "hang": "no end of its answer came",
    "open": OK,
    "stale": OK,
}
_TOKENS = {
    OK: 3,
    "429": 0,
    "500": 0,
    "rubbish": 0,
    "half": 2,
    "close": 2,
    "error": 3,
    "garbage": 3,
    "open": 3,
    "stale": 3,
}
_FAULTS = {3 * place + 20: name for place, name in enumerate(SAID)}
_STILL, _STOPPED = 15, 50


@dataclass(frozen=True)
class Rough:
    """A load in which everything goes wrong: what came of it, by both, and when we stopped it."""

    load: Load
    seen: list[Seen]
    stopped_s: float
    continued_s: float


@pytest.fixture(scope="module")
def rough(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Rough:
    """Fifty requests a second: faults, a server that stands still, a generator that is stopped."""
    sends: list[tuple[float, dict[str, str]]] = [(k / 50, {}) for k in range(75)]
    for number, does in {**_FAULTS, _STILL: "stand still"}.items():
        sends[number] = (number / 50, {"does": does})
    before = len(server.seen())
    made = Generating(server.url, sends, tmp_path_factory.mktemp("rough"), drain_s=0.3)
    with made.started() as process:
        until(lambda: len(server.seen()) > before + _STOPPED, every_s=0.005)
        stopped_ns = time.monotonic_ns()
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.25)
        continued_ns = time.monotonic_ns()
        process.send_signal(signal.SIGCONT)
        load = made.load(process)
    seen = server.seen()[before:]
    at_s = ((at_ns - load.begin_ns) / 1e9 for at_ns in (stopped_ns, continued_ns))
    return Rough(load, seen, *at_s)


def test_each_fault_has_a_line_and_others_do_not_feel_it(rough: Rough) -> None:
    assert len(rough.load.answers) == 75
    for number, answer in enumerate(rough.load.answers):
        fault = _FAULTS.get(number, OK)
        assert answer.status.startswith(SAID.get(fault, OK)), answer
        assert "\n" not in answer.status
        assert (answer.ended_s is None) == (fault == "hang")
        assert len(answer.arrivals_s) == _TOKENS.get(fault, 2)
    # Those on a connection that was closed meanwhile were sent again, and nothing else was.
    stale = next(str(number) for number, name in _FAULTS.items() if name == "stale")
    twice = Counter(each.user for each in rough.seen)
    assert twice.pop(stale) == rough.load.answers[int(stale)].sent_again + 1 > 1
    assert set(twice.values()) == {1}


def test_a_request_that_a_server_has_taken_is_not_sent_again(
    server: Running, tmp_path: Path
) -> None:
    before = len(server.seen())
    load = Generating(server.url, [(0.0, {}), (0.3, {"does": "late"})], tmp_path).load()
    assert load.answers[0].status == OK
    assert load.answers[1].status.startswith(FAILED)
    assert [each.user for each in server.seen()[before:]] == ["0", "1"]


def test_who_waits_for_a_server_that_stands_still_is_seen_to_wait(rough: Rough) -> None:
    still_s = (
        next(each.came_ns for each in rough.seen if each.user == str(_STILL)) - rough.load.begin_ns
    ) / 1e9
    waited = [a for a in rough.load.answers if still_s < a.due_s < still_s + STILL_S]
    assert len(waited) > 5
    for answer in waited:
        assert all(at_s >= still_s + STILL_S for at_s in answer.arrivals_s)
        if answer.status == OK:
            assert window.request_of(answer).ttft_s >= still_s + STILL_S - answer.due_s


def test_a_generator_that_stood_still_sends_what_was_due_meanwhile_and_counts_from_then(
    rough: Rough,
) -> None:
    late = [a for a in rough.load.answers if rough.stopped_s + 0.02 < a.due_s < rough.continued_s]
    assert len(late) > 5
    for answer in late:
        assert answer.sent_s >= rough.continued_s
        assert window.request_of(answer).ttft_s > rough.continued_s - answer.due_s
    assert any(late_s > 0.2 for _, late_s in rough.load.pauses_s)


def test_a_closed_loop_has_as_many_on_their_way_as_it_has_users(
    server: Running, tmp_path: Path
) -> None:
    before = len(server.seen())
    users: dict[str, Any] = {"concurrency": 3, "lead_s": 0.1, "ramp_s": 0.05, "requests": 30}
    load = Generating(server.url, [(None, {})] * 4, tmp_path, **users).load()
    seen = server.seen()[before:]
    assert max(each.unanswered for each in seen) == 2
    measured = window.measured(load)
    assert len(measured) == 30
    assert all(answer.status == OK for answer in measured)
    assert all(load.window_s[0] <= a.due_s <= load.window_s[1] for a in measured)
    # Due when the same user's last was answered: by one of the three that ended before.
    ended = sorted(a.ended_s or inf for a in load.answers)
    for place, answer in enumerate(sorted(load.answers, key=lambda a: a.due_s)[3:]):
        assert ended[place] <= answer.due_s <= answer.sent_s


TALK = {"then": [{"max_tokens": 4}, {"max_tokens": 2}]}


@pytest.mark.parametrize("users", [None, 2])
def test_a_turn_is_due_when_the_user_has_thought_about_the_answer_before(
    users: int | None, server: Running, tmp_path: Path
) -> None:
    starts = [k / 25 if users is None else None for k in range(40)]
    broken = {"then": [{"does": "close"}, {}]}
    sends = [(at_s, broken if k == 3 else TALK) for k, at_s in enumerate(starts)]
    asked: dict[str, Any] = {"concurrency": users, "requests": 18, "think_s": 0.05}
    load = Generating(server.url, sends, tmp_path, **asked).load()
    assert [a.due_s for a in load.answers] == sorted(a.due_s for a in load.answers)
    talks: dict[int, list[Any]] = {}
    for answer in load.answers:
        talks.setdefault(answer.conversation, []).append(answer)
    # Turns after one that failed are never sent.
    assert [a.turn for a in talks[3]] == [1, 2]
    assert talks[3][-1].status.startswith(FAILED)
    whole = [talk for number, talk in talks.items() if number != 3 and len(talk) == 3]
    assert len(whole) > 2
    for talk in whole:
        assert [a.turn for a in talk] == [1, 2, 3]
        assert [a.asked_tokens for a in talk] == [3, 4, 2]
        for before, answer in pairwise(talk):
            # The end of an answer comes with its last token, or just after it.
            thought_s = answer.due_s - 0.05 + 1e-9
            assert before.arrivals_s[-1] <= thought_s <= (before.ended_s or 0.0) + 2e-9
            assert answer.due_s <= answer.sent_s
    if users is None:
        firsts = [talks[number][0].due_s for number in sorted(talks)]
        assert firsts == pytest.approx(starts[: len(firsts)])
    assert len(window.measured(load)) == 18


def test_no_turn_follows_one_that_failed_within_its_answer(server: Running, tmp_path: Path) -> None:
    later = {"then": [{}]}
    sends = [(0.0, later), (0.0, {"does": "error", **later}), (0.5, {})]
    answers = Generating(server.url, sends, tmp_path).load().answers
    assert [(each.conversation, each.turn) for each in answers] == [(0, 1), (1, 1), (0, 2), (2, 1)]
    assert [each.status == OK for each in answers] == [True, False, True, True]


def test_a_server_that_dies_fails_who_waits_and_users_do_not_ask_all_the_time(
    tmp_path: Path,
) -> None:
    sends = [(None, {"does": "die"} if k == 7 else {}) for k in range(1000)]
    with null_server(0.005) as server:
        load = Generating(server.url, sends, tmp_path, concurrency=3, duration_s=0.5).load()
    statuses = [answer.status for answer in load.answers]
    died = next(k for k, status in enumerate(statuses) if status != OK)
    assert died > 3
    assert all(status.startswith(FAILED) for status in statuses[died:])
    refused = [a.due_s for a in load.answers if "Cannot connect" in a.status]
    assert len(refused) > 3
    assert all(later - earlier >= 0.1 for earlier, later in zip(refused, refused[3:], strict=False))


def test_it_ends_with_whoever_started_it(server: Running, tmp_path: Path) -> None:
    before = len(server.seen())
    made = Generating(server.url, ((k / 50, {}) for k in range(10_000)), tmp_path)
    words = ["sh", "-c", '"$@" & echo $!; wait', "sh", *made.command]
    with subprocess.Popen(words, env=made.variables, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        generator = psutil.Process(int(parent.stdout.readline()))
        until(lambda: len(server.seen()) > before, every_s=0.01)
        parent.kill()
        psutil.wait_procs([generator], timeout=PATIENCE_S)
        assert not generator.is_running()
    assert len(server.seen()) - before < 10_000
