"""The cache under concurrency, death and failure."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.engines import digest
from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.digest import digest_files
from orchestrator.measure import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_root_is_made_private(cache: Path) -> None:
    assert cache_root() == cache
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_default_root_is_under_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ORCHESTRATOR_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "orchestrator"


def test_many_who_want_the_same_entry_build_it_once(cache: Path) -> None:
    built = []

    def build(path: Path) -> None:
        built.append(path)
        path.mkdir()
        (path / "a").write_text("whole")
        time.sleep(0.05)
        (path / "b").write_text("whole")

    final = cache_root() / "things" / "one"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: publish(final, build), range(8)))
    assert set(found) == {final}
    assert len(built) == 1
    assert sorted(p.name for p in final.iterdir()) == ["a", "b"]
    assert [p.name for p in final.parent.iterdir()] == ["one"]


def test_the_phase_of_making_is_entered_only_where_something_is_made(cache: Path) -> None:
    final = cache_root() / "things" / "one"
    seen: list[bool] = []

    @contextmanager
    def making() -> Iterator[None]:
        seen.append(final.exists())
        yield
        seen.append(final.exists())

    for _ in range(2):
        publish(final, lambda path: path.write_text("whole") and None, making=making())
    assert seen == [False, True]


def test_a_failed_build_leaves_nothing_and_can_be_tried_again(cache: Path) -> None:
    final = cache_root() / "things" / "one"

    def fail(path: Path) -> None:
        path.write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        publish(final, fail)
    assert list(final.parent.iterdir()) == []
    publish(final, lambda path: path.write_text("whole") and None)
    assert final.read_text() == "whole"


def test_a_builder_killed_half_way_blocks_nobody(cache: Path, tmp_path: Path) -> None:
    final = cache_root() / "things" / "one"
    program = f"""
import time
from pathlib import Path
from orchestrator.engines.cache import publish
def build(path):
    path.write_text("half")
    Path({str(tmp_path / "begun")!r}).touch()
    time.sleep(600)
publish(Path({str(final)!r}), build)
"""
    builder = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            assert builder.poll() is None
            time.sleep(0.02)
    finally:
        builder.send_signal(signal.SIGKILL)
        builder.wait()
    assert list(final.parent.glob(".partial-*"))
    publish(final, lambda path: path.write_text("whole") and None)
    assert final.read_text() == "whole"
    assert [p.name for p in final.parent.iterdir()] == ["one"]


def test_an_unusable_root_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(in_the_way / "cache"))
    with pytest.raises(InputError, match="ORCHESTRATOR_CACHE") as raised:
        cache_root()
    assert str(in_the_way) in str(raised.value)


def test_a_full_disk_is_said_in_one_line(cache: Path) -> None:
    def build(path: Path) -> None:
        with open("/dev/full", "w") as full:
            full.write("x")

    with pytest.raises(InputError, match="no space left"):
        publish(cache_root() / "things" / "one", build)


def test_digest_is_of_content_and_is_remembered(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    one.write_bytes(b"1" * 100)
    two.write_bytes(b"2" * 100)
    first = digest_files([one, two])
    assert first == digest_files([two, one])
    for entry in (cache_root() / "digests").iterdir():
        entry.write_text('{"sha256": "remembered"}')
    monkeypatch.setattr(digest, "_KNOWN", {})  # as in another process
    assert digest_files([one]) == digest.digest_text("a.safetensors remembered")
    # Another content of the same size, time of modification and inode, as of an unpacked archive.
    stamp = two.stat()
    with two.open("r+b") as stream:
        stream.write(b"9")
    os.utime(two, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digest_files([two]) != digest.digest_text("b.safetensors remembered")
