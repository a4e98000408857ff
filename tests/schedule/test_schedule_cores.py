"""Which cores are measured on, and that no two slots of a host ever own the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ClusterError
from orchestrator.schedule.cluster.ray import connection
from orchestrator.schedule.supervise.cores import (
    CoreSplit,
    allowed_cores,
    from_text,
    pin_process,
    split,
    supervisor_cores,
    to_text,
)
from orchestrator.schedule.supervise.locks import (
    DIRECTORY_VARIABLE,
    Request,
    local_directory,
    private_directory,
)

NOWHERE = Path("/nonexistent")


def cores(names: tuple[str, ...]) -> set[str]:
    return set(names)


# -- which cores ----------------------------------------------------------------------------------


def test_only_what_the_affinity_allows() -> None:
    found = allowed_cores({7, 3, 5}, root=NOWHERE)
    assert sorted(found) == [3, 5, 7]


def test_threads_of_one_core_stay_together(tmp_path: Path) -> None:
    for core in range(4):  # 0 and 2 are threads of one core, 1 and 3 of the other
        directory = tmp_path / f"sys/devices/system/cpu/cpu{core}/topology"
        directory.mkdir(parents=True)
        (directory / "core_id").write_text(f"{core % 2}\n")
    assert allowed_cores(range(4), root=tmp_path) == (0, 2, 1, 3)


@pytest.mark.parametrize(
    ("text", "count"),
    [("max 100000", 16), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1)],
)
def test_no_more_than_the_quota_pays_for(tmp_path: Path, text: str, count: int) -> None:
    for name, content in (("proc/self/cgroup", "0::/"), ("sys/fs/cgroup/cpu.max", text)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert len(allowed_cores(range(16), root=tmp_path)) == count


def test_cores_are_reserved_where_there_are_enough() -> None:
    assert split(range(2)) == CoreSplit((0, 1))
    assert split(range(8)) == CoreSplit(tuple(range(7)), (7,))
    assert len(split(range(128)).ours) == 4
    assert split(range(16), 12).ours == (12, 13, 14, 15)


@given(st.integers(1, 300), st.data())
def test_a_supervisor_is_never_on_measured_cores_if_it_can_be_elsewhere(
    count: int, data: st.DataObject
) -> None:
    whole = split(range(count))
    own = data.draw(st.lists(st.sampled_from(whole.measured), min_size=1, unique=True))
    place = supervisor_cores(whole, own)
    assert not set(place) & set(own)
    assert place or (not whole.ours and set(own) == set(whole.measured))


def test_text_form() -> None:
    assert from_text(to_text((3, 1))) == (3, 1)
    assert from_text("") == ()


def test_pinning_moves_every_thread() -> None:
    before = os.sched_getaffinity(0)
    try:
        pin_process({min(before)})
        threads = {int(t) for t in os.listdir("/proc/self/task")}
        assert all(os.sched_getaffinity(thread) == {min(before)} for thread in threads)
    finally:
        pin_process(before)


# -- ownership ------------------------------------------------------------------------------------

NAMES = [f"core-{i}" for i in range(4)]


def test_two_requests_never_share(tmp_path: Path) -> None:
    first, second, third = (Request(tmp_path, NAMES, 2) for _ in range(3))
    assert first.granted()
    assert second.granted()
    assert not cores(first.held) & cores(second.held)
    assert not third.granted()
    first.release()
    assert third.granted()
    assert not cores(third.held) & cores(second.held)


def test_all_or_nothing(tmp_path: Path) -> None:
    one, whole = Request(tmp_path, NAMES, 1), Request(tmp_path, NAMES, 4)
    assert one.granted()
    assert not whole.granted()
    assert whole.held == ()


def test_a_whole_node_does_not_starve(tmp_path: Path) -> None:
    small, whole, later = (Request(tmp_path, NAMES, n) for n in (1, 4, 1))
    assert small.granted()
    assert not whole.granted()
    assert not later.granted(), "must queue behind the whole node, though cores are free"
    small.release()
    assert whole.granted()
    whole.release()
    assert later.granted()


def test_leaving_the_queue_lets_others_pass(tmp_path: Path) -> None:
    small, whole, later = (Request(tmp_path, NAMES, n) for n in (1, 4, 1))
    assert small.granted()
    assert not whole.granted()
    whole.release()
    assert later.granted()


def test_without_a_queue_only_the_names_count(tmp_path: Path) -> None:
    gpu0, both, gpu1 = (
        Request(tmp_path, names, len(names), queue=False) for names in (["a"], ["a", "b"], ["b"])
    )
    assert gpu0.granted()
    assert not both.granted()
    assert gpu1.granted()


def test_more_than_there_is_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 of 4"):
        Request(tmp_path, NAMES, 5)


def hold(directory: Path, pipe: Connection) -> None:
    request = Request(directory, NAMES, 3)
    pipe.send(request.granted())
    time.sleep(60)


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    mine, theirs = multiprocessing.Pipe()
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, theirs))
    holder.start()
    try:
        assert mine.poll(60)
        assert mine.recv()
        request = Request(tmp_path, NAMES, 2)
        assert not request.granted()
        os.kill(holder.pid or 0, signal.SIGKILL)
        holder.join()
        assert request.granted()
    finally:
        holder.kill()
        holder.join()


# -- the directory --------------------------------------------------------------------------------


def test_the_directory_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "ours"))
    before = os.umask(0)
    try:
        assert local_directory().stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_a_session_too_deep_for_sockets_goes_to_a_private_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / ("deep" * 20)))
    short = tmp_path / "short"
    monkeypatch.setattr(connection, "short_directory", lambda: private_directory(short))
    before = os.umask(0)
    try:
        with connection._session_directory() as directory:
            assert directory.parent.parent == short
            for made in (short, directory.parent):
                assert made.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_a_directory_that_others_may_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(shared))
    with pytest.raises(ClusterError, match="user alone"):
        local_directory()


def test_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(link))
    with pytest.raises(ClusterError, match=str(link)):
        local_directory()
