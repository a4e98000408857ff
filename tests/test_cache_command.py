"""``cache``: a size is written so that a small one is not nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.commands import orchestrator


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
