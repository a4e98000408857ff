from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.isolate import directory as module
from orchestrator.isolate.directory import AttemptDirectory, sweep


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[AttemptDirectory]:
    made = AttemptDirectory(tmp_path)
    yield made
    made.remove()


def test_a_short_log_is_whole(directory: AttemptDirectory) -> None:
    os.write(directory.log, b"hello\n")
    directory.cap_log()
    assert directory.read_log() == b"hello\n"


@pytest.mark.parametrize("capped_every", [1, 7, 1000])
def test_a_long_log_keeps_both_ends_and_little_disk(
    directory: AttemptDirectory, monkeypatch: pytest.MonkeyPatch, capped_every: int
) -> None:
    half = 64 << 10
    monkeypatch.setattr(module, "LOG_HALF_BYTES", half)
    directory = AttemptDirectory(directory.path)
    written = b""
    for n in range(200):
        block = b"line %05d\n" % n + b"." * 10_000
        os.write(directory.log, block)
        written += block
        if n % capped_every == 0:
            directory.cap_log()
            assert os.fstat(directory.log).st_blocks * 512 <= 3 * half + capped_every * 10_500
    log = directory.read_log()
    mark = f"\n[... {len(written) - 2 * half} bytes of output were not kept ...]\n"
    assert log == written[:half] + mark.encode() + written[-half:]


def test_artifacts_are_collected_and_the_missing_named(
    directory: AttemptDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ARTIFACT_MAX_BYTES", 100)
    outside = tmp_path / "outside.txt"
    outside.write_text("not yours")
    (directory.artifacts / "sub").mkdir()
    (directory.artifacts / "sub/good.json").write_text("{}")
    (directory.artifacts / "big.bin").write_bytes(b"x" * 101)
    (directory.artifacts / "link.txt").symlink_to(outside)
    (directory.artifacts / "link_dir").symlink_to(tmp_path)
    os.mkfifo(directory.artifacts / "pipe")
    refused = [
        "big.bin",
        "link.txt",
        "link_dir/outside.txt",
        "../job.json",
        "/etc/hostname",
        "pipe",
        "sub",
        "never.txt",
        "log.txt",
        "nul\0byte",
    ]
    contents, missing = directory.collect(["sub/good.json", *refused])
    assert contents == {"sub/good.json": b"{}"}
    assert list(missing) == refused
    assert missing["never.txt"] == "declared and never written"
    assert "100 are kept at most" in missing["big.bin"]


def test_all_artifacts_together_are_bounded(
    directory: AttemptDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ARTIFACTS_MAX_BYTES", 150)
    for name in ("a", "b"):
        (directory.artifacts / name).write_bytes(b"x" * 100)
    contents, missing = directory.collect(["a", "b"])
    assert set(contents) == {"a"}
    assert set(missing) == {"b"}


def test_only_directories_whose_owners_are_gone_are_swept(tmp_path: Path) -> None:
    alive, dead = AttemptDirectory(tmp_path), AttemptDirectory(tmp_path)
    os.close(dead.log)  # as the kernel does for a killed supervisor
    sweep(tmp_path)
    assert dead.path.exists(), "a directory this young may be one that is just being made"
    sweep(tmp_path, min_age_s=-1.0)
    assert not dead.path.exists()
    assert alive.path.exists()
    alive.remove()
    assert not alive.path.exists()


def test_what_was_half_removed_when_its_owner_died_is_swept(tmp_path: Path) -> None:
    half = AttemptDirectory(tmp_path)
    os.close(half.log)
    (half.path / module.LOG_NAME).unlink()
    sweep(tmp_path)
    assert half.path.exists()
    sweep(tmp_path, min_age_s=-1.0)
    assert not half.path.exists()
