"""Claims: one driver a trial, whatever becomes of the others."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.attempt import Outcome
from orchestrator.errors import StoreUnavailable
from orchestrator.record import Recording, sync
from orchestrator.record.backend import RunRow
from orchestrator.record.claims import Claims, HostLocks
from orchestrator.record.embedded import EmbeddedStore
from orchestrator.record.liveness import STALE_AFTER_S, driver_id
from orchestrator.record.shared_claims import PREFIX, SharedClaims
from orchestrator.record.spool import Spool
from testing.waiting import until

HASHES = [f"{number:064x}" for number in range(1 << 240, (1 << 240) + 8)]


# -- on one host ----------------------------------------------------------------------------------


def test_a_trial_has_one_holder_at_a_time(tmp_path: Path) -> None:
    one, two = HostLocks(tmp_path), HostLocks(tmp_path)
    a, b = "a" * 64, "b" * 64
    assert one.take(a)
    assert not two.take(a)
    assert two.take(b)
    one.release(a)
    assert two.take(a)
    two.close()
    assert one.take(a)
    assert one.take(b)
    one.close()


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from orchestrator.record.claims import HostLocks\n"
        f"assert HostLocks(Path({str(tmp_path)!r})).take('a' * 64)\n"
        "print('held', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    locks = HostLocks(tmp_path)
    assert not locks.take("a" * 64)
    holder.kill()
    holder.wait()
    assert locks.take("a" * 64)
    locks.close()


@pytest.fixture
def other(store: EmbeddedStore) -> Iterator[Claims]:
    """A second driver's claims on the same store."""
    spool = Spool.create(store.spool_root, "other")
    claims = Claims(store, spool.directory)
    yield claims
    claims.close()
    spool.close()


def test_a_claim_lasts_until_the_result_can_be_read(
    store: EmbeddedStore, other: Claims, kit: SimpleNamespace
) -> None:
    trial = kit.trial_of(1)
    with Recording(store, kit.plan_of([trial])) as recording:
        spec = kit.spec_of(trial)
        standing = recording.claims.ask({spec.attempt_id: trial.hash})[spec.attempt_id]
        assert standing is not None
        assert (list(standing.attempts or ()), standing.own) == ([], 0)
        assert other.ask({"theirs": trial.hash}) == {"theirs": None}
        recording.begin(spec, kit.SLOT)
        assert other.ask({"theirs": trial.hash}) == {"theirs": None}
        recording.finish(kit.report_of(spec), trial)
        until(lambda: other.ask({"theirs": trial.hash})["theirs"] is not None)
        seen = other.ask({"again": trial.hash})["again"]
        assert seen is not None
        assert [a.outcome for a in seen.attempts or ()] == ["ok"]
        assert seen.own == 1, "its own attempt, of which nothing is recorded"


@pytest.mark.parametrize("begun", [False, True])
def test_what_a_dead_driver_spooled_is_seen(
    store: EmbeddedStore, other: Claims, kit: SimpleNamespace, begun: bool
) -> None:
    """It measured the trial, wrote it to its spool and was gone before the store had it.

    The store may have its beginning: a run that goes on for ever.
    """
    trial = kit.trial_of(2)
    recording = Recording(store, kit.plan_of([trial]))
    spec = kit.spec_of(trial)
    assert recording.claims.ask({spec.attempt_id: trial.hash})[spec.attempt_id] is not None
    if not begun:
        recording._drainer.stop()
    recording.begin(spec, kit.SLOT)
    if begun:
        assert recording.flush(60)
        recording._drainer.stop()
    recording.finish(kit.report_of(spec), trial)
    until(lambda: list(recording._spool.directory.glob("*.finish")))
    recording._spooler.stop()
    recording.claims.close()
    recording._spool._lock.release()  # as the kernel does
    seen = other.ask({"theirs": trial.hash})["theirs"]
    assert seen is not None
    assert [a.outcome for a in seen.attempts or ()] == ["ok"]
    assert other.met_others
    assert sync(store).written == 1
    assert not other.met_others
    assert store.running() == []


def test_own_attempts_of_a_trial_share_its_claim(store: EmbeddedStore, other: Claims) -> None:
    spool = Spool.create(store.spool_root, "own")
    claims = Claims(store, spool.directory)
    trial = "c" * 64
    first, second = (claims.ask({name: trial})[name] for name in ("1", "2"))
    assert first is not None
    assert second is not None
    assert (first.own, second.own) == (0, 1)
    claims.drop("1")
    assert other.ask({"x": trial})["x"] is None
    claims.drop("2")
    assert other.ask({"x": trial})["x"] is not None
    claims.close()
    spool.close()


def test_another_kind_of_machine_does_not_wait_and_sees_all_attempts(
    store: EmbeddedStore, other: Claims, kit: SimpleNamespace
) -> None:
    trial = kit.trial_of(6)
    kit.record_one(store, trial)
    spool = Spool.create(store.spool_root, "own")
    claims = Claims(store, spool.directory)
    one, two = f"{trial.hash}/c:0123456789ab", f"{trial.hash}/c:ba9876543210"
    assert claims.ask({"1": one})["1"] is not None
    assert other.ask({"x": one})["x"] is None
    seen = other.ask({"y": two})["y"]
    assert seen is not None
    assert [a.outcome for a in seen.attempts or ()] == ["ok"]
    claims.drop("1")
    assert other.ask({"z": one})["z"] is not None
    claims.close()
    spool.close()


# -- between hosts --------------------------------------------------------------------------------


class Server:
    """What claims ask of a tracking server, in memory; each call takes its time."""

    def __init__(self, seed: int = 0) -> None:
        self.runs: dict[str, dict[str, str]] = {}
        self.ended: dict[str, int] = {}
        self.away = False
        self.calls = 0
        self._lock = threading.Lock()
        self._random = random.Random(seed)

    def join(self, name: str, driver: str | None = None) -> None:
        self.runs[name] = {"driver_id": driver or driver_id(), "heartbeat": "1", "sweep_id": name}

    def tag(self, run_id: str, tags: dict[str, str]) -> None:
        self._spend()
        with self._lock:
            self.runs[run_id] = {**self.runs[run_id], **tags}

    def search(self, condition: str, *, page_size: int | None = None) -> list[RunRow]:
        self._spend()
        if page_size is not None:
            return [self._row(name) for name in self.runs]
        with self._lock:
            found = [self._row(name) for name in self.runs if name not in self.ended]
        self._spend()
        return found

    def _row(self, name: str) -> RunRow:
        end_ms = self.ended.get(name)
        status = "RUNNING" if end_ms is None else "FINISHED"
        return RunRow(name, status, 0, end_ms, "", "0", dict(self.runs[name]))

    def _spend(self) -> None:
        self.calls += 1
        if self.away:
            raise StoreUnavailable("away")
        time.sleep(self._random.random() * 0.002)


def shared(server: Server, name: str, **options: Any) -> SharedClaims:
    if name not in server.runs:
        server.join(name)
    options.setdefault("sleep", lambda _: time.sleep(0.002))
    return SharedClaims(lambda: server, lambda: name, **options)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("seed", range(15))
def test_of_drivers_that_ask_at_once_at_most_one_gets_it(seed: int) -> None:
    server = Server(seed)
    drivers = [shared(server, f"run-{i}") for i in random.Random(seed).sample(range(9), 4)]
    held: list[set[str]] = [set() for _ in drivers]
    start = threading.Barrier(len(drivers))

    def ask(index: int) -> None:
        start.wait()
        held[index] = set(HASHES) - drivers[index].take(HASHES)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(drivers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(len, held)) == len(set.union(*held)), "nobody shares a trial"
    # Whoever asks alone afterwards gets what nobody has, and nothing else.
    free = set(HASHES) - set.union(*held)
    assert set(HASHES) - drivers[0].take(HASHES) == free | held[0]


def test_what_is_given_up_can_be_taken_and_tags_are_used_again() -> None:
    server = Server()
    one, two = shared(server, "one"), shared(server, "two")
    assert one.take(HASHES[:2]) == set()
    assert two.take(HASHES[:3]) == set(HASHES[:2])
    assert two.company
    one.release(HASHES[0])
    one.flush()
    assert two.take(HASHES[:2]) == {HASHES[1]}
    for config_hash in HASHES[3:]:
        assert one.take([config_hash]) == set()
        one.release(config_hash)
    one.flush()
    tags = {key: value for key, value in server.runs["one"].items() if key.startswith(PREFIX)}
    assert sorted(tags.values()) == ["", HASHES[1]]


def test_asking_again_for_what_is_held_asks_nobody() -> None:
    server = Server()
    claims = shared(server, "one")
    assert claims.take(HASHES[:1]) == set()
    claims.release(HASHES[0])
    before = server.calls
    assert claims.take(HASHES[:1]) == set()
    assert server.calls == before
    assert shared(server, "two").take(HASHES[:1]) == set(HASHES[:1])


def test_a_driver_alone_is_told_so() -> None:
    server = Server()
    server.join("long ago")
    server.ended["long ago"] = round((time.time() - 2 * 86_400) * 1000)
    claims = shared(server, "one")
    claims.take(HASHES[:1])
    assert not claims.company
    server.join("a minute ago")
    server.ended["a minute ago"] = round((time.time() - 60) * 1000)
    claims.take(HASHES[1:2])
    assert claims.company, "it may have measured something since this sweep was planned"


def test_a_lease_is_a_beating_heart_and_no_clock_is_compared() -> None:
    now = [0.0]
    server = Server()
    claims = shared(server, "one", clock=lambda: now[0])
    server.join("far", "elsewhere:17:123:abc")
    server.runs["far"][f"{PREFIX}0"] = HASHES[0]
    for beat in ("0", "99999999999", "-5"):  # a clock that steps about
        server.runs["far"]["heartbeat"] = beat
        now[0] += STALE_AFTER_S - 1
        assert claims.take(HASHES[:1]) == {HASHES[0]}, beat
    now[0] += STALE_AFTER_S - 1
    assert claims.take(HASHES[:1]) == {HASHES[0]}
    now[0] += 2
    assert claims.take(HASHES[:1]) == set(), "silent for as long as a lease lasts"


def test_a_dead_driver_of_this_host_has_no_claims() -> None:
    server = Server()
    gone = subprocess.Popen(["sleep", "60"])
    server.join("near", driver_id(gone.pid))
    server.runs["near"][f"{PREFIX}0"] = HASHES[0]
    claims = shared(server, "one")
    assert claims.take(HASHES[:1]) == {HASHES[0]}
    gone.kill()
    gone.wait()
    assert claims.take(HASHES[:1]) == set()


def test_a_server_that_is_away_claims_nothing_and_forbids_nothing(
    store: EmbeddedStore, tmp_path: Path
) -> None:
    server, said = Server(), []
    one = shared(server, "one")
    spool = Spool.create(store.spool_root, "own")
    claims = Claims(store, spool.directory, shared=one, say=said.append)
    server.away = True
    standing = claims.ask({"1": HASHES[0], "2": HASHES[1]})
    assert all(found is not None and found.attempts is None for found in standing.values())
    claims.ask({"3": HASHES[2]})
    assert len(said) == 1
    assert "claims cannot be seen" in said[0]
    server.away = False
    two = shared(server, "two")
    assert two.take(HASHES[:1]) == set(), "it was never written"
    claims.close()
    spool.close()


def test_what_waits_in_a_spool_counts_while_the_store_is_away(
    store: EmbeddedStore, other: Claims, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that ended while the store was away left its result where this host can read it."""
    measured, new = kit.trial_of(4), kit.trial_of(5)

    def away(*_: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "backend", away)
        patch.setattr(type(store), "recorded", away)
        recording = Recording(store, kit.plan_of([measured]), patience_s=0.1)
        recording.finish(kit.report_of(kit.spec_of(measured)), measured)
        assert recording.close().waiting == 1
        found = other.ask({"a": measured.hash, "b": new.hash})
    assert found["a"] is not None
    assert [a.outcome for a in found["a"].attempts or ()] == ["ok"]
    assert found["b"] is not None
    assert found["b"].attempts is None


def test_outcomes_are_seen_as_they_are(
    store: EmbeddedStore, other: Claims, kit: SimpleNamespace
) -> None:
    trial = kit.trial_of(3)
    kit.record_one(store, trial, Outcome.ERROR)
    found = other.ask({"x": trial.hash})["x"]
    assert found is not None
    assert [a.outcome for a in found.attempts or ()] == ["error"]
