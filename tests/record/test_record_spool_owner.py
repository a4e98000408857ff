"""Whose a spool is: a new driver beside one who drains, and what waits of dead drivers."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from orchestrator.commands.findings import _store
from orchestrator.errors import StoreError
from orchestrator.record import spool
from orchestrator.record.runrecord import ATTEMPT_TAG, SWEEP_TAG, RunRecord
from orchestrator.record.spool import Spool


def record_of(key: str, status: str = "FINISHED", key_tag: str = ATTEMPT_TAG) -> RunRecord:
    return RunRecord(
        key_tag=key_tag,
        key=key,
        status=status,
        experiment="e",
        name=key,
        start_ms=1,
        end_ms=2,
        parent="s",
        tags={},
        params={},
        metrics=(),
        files={},
    )


def filled(root: Path, sweep_id: str) -> Spool:
    """A driver's spool with three attempts, one of them begun only."""
    made = Spool.create(root, sweep_id)
    made.write(record_of("s", "RUNNING", SWEEP_TAG))
    for key in ("a", "b"):
        made.write(record_of(key, "RUNNING"))
        made.write(record_of(key))
    made.write(record_of("c", "RUNNING"))
    return made


def test_doctor_counts_attempts_of_dead_drivers_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    living = filled(root, "living")
    assert spool.waiting_results(root) == 0
    assert not [f for f in _store(tmp_path) if "spool" in f.what]
    dead = filled(root, "dead")
    dead._lock.release()  # as the kernel does for a process that died
    (root / spool.CORRUPT).mkdir()
    assert spool.waiting_results(root) == 3
    (found,) = [f for f in _store(tmp_path) if "spool" in f.what]
    assert (found.level, found.what) == ("warn", "3 results wait in the spool")
    assert found.fix == f"python -m orchestrator sync tracking.root={tmp_path}"
    living._lock.release()
    assert spool.waiting_results(root) == 6
    # It only looked: everything is still there.
    assert len(dead.pending()) == 6
    assert spool.waiting_results(tmp_path / "nowhere") == 0


def test_looking_does_not_take_the_spool_from_its_driver(tmp_path: Path) -> None:
    living = filled(tmp_path, "living")
    spool.waiting_results(tmp_path)
    with spool.abandoned(living.directory) as taken:
        assert taken is None, "it is still the driver's"


def test_a_new_driver_is_not_failed_by_who_drains(tmp_path: Path) -> None:
    """``sync`` takes each spool it finds, and removes an empty one: also one that is being made."""
    stop = threading.Event()

    def drain() -> None:
        while not stop.is_set():
            for directory in spool.spool_directories(tmp_path):
                with spool.abandoned(directory):
                    pass

    drainers = [threading.Thread(target=drain) for _ in range(2)]
    for thread in drainers:
        thread.start()
    try:
        for number in range(60):
            made = Spool.create(tmp_path, f"sweep{number}")
            made.write(record_of("a"))
            assert [path.name for path in made.pending()] == ["2.a.finish"]
            with spool.abandoned(made.directory) as taken:
                assert taken is None, "locked by its driver, in the place where others look"
            made.close()
    finally:
        stop.set()
        for thread in drainers:
            thread.join()


def test_there_when_made_and_gone_when_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mkdir` says that it exists, `is_dir` that it does not: somebody removed it in between."""
    met: list[str] = []
    real = spool._acquired

    def acquired(lock: object, path: Path) -> bool:
        if not met:
            met.append("gone")
            raise FileExistsError(17, "File exists", str(path.parent))
        return real(lock, path)  # type: ignore[arg-type]

    monkeypatch.setattr(spool, "_acquired", acquired)
    made = Spool.create(tmp_path, "sweep")
    made.write(record_of("a"))
    assert met == ["gone"]
    made.close()


def test_a_file_in_its_place_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_CREATE_PATIENCE_S", 0.05)
    (tmp_path / "sweep").write_text("no directory")
    with pytest.raises(StoreError, match="File exists"):
        Spool.create(tmp_path, "sweep")


def test_removed_between_its_making_and_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step what the race does: the drainer holds it, then it is gone, then it is made."""
    steps: list[str] = []
    real = spool._acquired

    def acquired(lock: object, path: Path) -> bool:
        if not steps:
            steps.append("held")
            with spool.abandoned(path.parent) as taken:
                assert taken is not None
                assert real(lock, path) is False  # type: ignore[arg-type]
            assert not path.parent.exists()
            return False
        steps.append("made")
        return real(lock, path)  # type: ignore[arg-type]

    monkeypatch.setattr(spool, "_acquired", acquired)
    made = Spool.create(tmp_path, "sweep1")
    assert steps == ["held", "made"]
    made.write(record_of("a"))
    assert made.pending()


def test_a_spool_that_stays_taken_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_CREATE_PATIENCE_S", 0.05)
    first = filled(tmp_path, "sweep1")
    with pytest.raises(StoreError, match="busy"):
        Spool.create(tmp_path, "sweep1")
    assert first.pending()
