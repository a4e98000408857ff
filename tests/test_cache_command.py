"""``cache``: a size is written so that a small one is not nothing."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from orchestrator.engines.cache import kept
from testing.commands import environment, orchestrator


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(345, "345 B"), (9_000, "8.79 KiB"), (5 * 2**20, "5 MiB")]
)
def test_sizes_have_the_prefix_that_suits_them(tmp_path: Path, size_bytes: int, text: str) -> None:
    (tmp_path / "cache" / "digests").mkdir(parents=True)
    (tmp_path / "cache" / "digests" / "one").write_bytes(b"x" * size_bytes)
    place = {"ORCHESTRATOR_CACHE": str(tmp_path / "cache")}
    listed = orchestrator(tmp_path, "cache", **place)
    assert listed.out.split() == ["digests", "1", *text.split()]
    pruned = orchestrator(tmp_path, "cache", "--prune", "digests", **place)
    assert f"removed 1 item of digests, {text}" in pruned.err


def test_what_is_removed_while_it_is_listed_is_no_bug(tmp_path: Path) -> None:
    kind = tmp_path / "environments"
    done = threading.Event()

    def build_and_remove() -> None:
        while not done.is_set():
            for index in range(20):
                (kind / "one" / str(index) / "below").mkdir(parents=True)
                (kind / "one" / str(index) / "below" / "file").write_bytes(b"x")
            os.rename(kind / "one", kind / "two")
            shutil.rmtree(kind / "two")

    kind.mkdir()
    (tmp_path / "digests").mkdir()
    (tmp_path / "digests" / "kept").write_bytes(b"abc")
    builder = threading.Thread(target=build_and_remove)
    builder.start()
    try:
        with environment({**os.environ, "ORCHESTRATOR_CACHE": str(tmp_path)}):
            for _ in range(100):
                assert {each.name: each.bytes for each in kept()}["digests"] == 3
    finally:
        done.set()
        builder.join()
