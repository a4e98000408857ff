"""The spool: whole or not there, private, and never blocked by one bad record."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import StoreError
from orchestrator.record import spool
from orchestrator.record.runrecord import ATTEMPT_TAG, SWEEP_TAG, MetricPoint, RunRecord
from orchestrator.record.spool import CorruptRecord, Spool


def record_of(key: str = "a1", status: str = "FINISHED", **changes: object) -> RunRecord:
    fields: dict[str, object] = {
        "key_tag": ATTEMPT_TAG,
        "key": key,
        "status": status,
        "experiment": "quant",
        "name": "nf4 · a1",
        "start_ms": 1000,
        "end_ms": 2000,
        "parent": "s1",
        "tags": {"outcome": "ok", "config_hash": "ab"},
        "params": {"task.n": "1"},
        "metrics": (MetricPoint("tpot_s", 0.125, 2000), MetricPoint("t", 1e-300, 1, 7)),
        "files": {"log.txt": b"\0\xff", "sub/é.txt": "ü".encode()},
        **changes,
    }
    return RunRecord(**fields)  # type: ignore[arg-type]


@pytest.fixture
def opened(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "spool", "sweep1")


def test_a_record_comes_back_as_it_went(opened: Spool) -> None:
    written = opened.write(record_of())
    again = spool.read(written.path)
    assert again.record == record_of()
    assert again.digest == written.digest
    assert spool.read(written.path, files=False).record.files == {}


def test_only_the_user_can_read_it(opened: Spool) -> None:
    path = opened.write(record_of()).path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(opened.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(opened.directory.parent.stat().st_mode) == 0o700


def test_records_are_drained_in_the_order_the_store_needs(opened: Spool) -> None:
    for record in (
        record_of("a2"),
        record_of("s", "FINISHED", key_tag=SWEEP_TAG),
        record_of("a2", "RUNNING"),
        record_of("s", "RUNNING", key_tag=SWEEP_TAG),
    ):
        opened.write(record)
    names = [path.name for path in opened.pending()]
    assert names == ["0.sweep", "1.a2.begin", "2.a2.finish", "9.sweep"]


def test_a_key_cannot_leave_the_directory(opened: Spool) -> None:
    path = opened.write(record_of("../../x")).path
    assert path.parent == opened.directory
    assert spool.read(path).record.key == "../../x"


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_damage_is_noticed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    opened = Spool.create(tmp_path_factory.mktemp("x"), "s")
    path = opened.write(record_of()).path
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    with pytest.raises(CorruptRecord):
        spool.read(path)
    opened.close()


def test_a_bad_record_is_set_aside_with_its_reason(opened: Spool) -> None:
    path = opened.write(record_of()).path
    line = spool.set_aside(path, "its checksum does not match")
    assert "checksum" in line
    assert not path.exists()
    aside = opened.directory.parent / spool.CORRUPT
    assert {p.suffix == ".why" for p in aside.iterdir()} == {True, False}
    # The directory of what was set aside is not taken for a driver's.
    assert spool.spool_directories(opened.directory.parent) == [opened.directory]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_written(
    opened: Spool, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = sorted(os.listdir(opened.directory))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":

        def open_full(descriptor: int, mode: str) -> object:
            os.close(descriptor)
            return full()

        monkeypatch.setattr(spool, "open", open_full, raising=False)
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(StoreError, match="no space left on the disk") as caught:
        opened.write(record_of())
    monkeypatch.undo()
    assert caught.value.fix
    assert sorted(os.listdir(opened.directory)) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_really_full_device(opened: Spool, tmp_path: Path) -> None:
    # The temporary file is a link to a device on which every write fails as on a full disk.
    name = f".2.a1.finish.{os.getpid()}.tmp"
    os.symlink("/dev/full", opened.directory / name)
    with pytest.raises(StoreError, match="no space left"):
        opened.write(record_of())
    assert opened.pending() == []


def test_an_unwritable_place_says_what_to_do(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError) as caught:
        Spool.create(blocked / "spool", "s")
    assert "\n" not in str(caught.value)
    assert "tracking.root" in str(caught.value)


def test_a_living_drivers_spool_is_left_alone_and_a_dead_ones_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from orchestrator.record.spool import Spool\n"
        "kept = Spool.create(pathlib.Path(sys.argv[1]), 's1')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    (tmp_path / "s1" / ".2.a1.finish.1.tmp").write_bytes(b"half")
    with spool.abandoned(tmp_path / "s1") as found:
        assert found is None
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    with spool.abandoned(tmp_path / "s1") as found:
        assert found is not None
        assert found.pending() == []
        assert not (tmp_path / "s1" / ".2.a1.finish.1.tmp").exists()
    assert not (tmp_path / "s1").exists()


def test_listing_passes_over_corrupt_records(opened: Spool) -> None:
    opened.write(record_of("good"))
    opened.write(record_of("bad")).path.write_bytes(b"garbage")
    found = list(spool.unread(opened.directory.parent))
    assert [item.record.key for item in found] == ["good"]
