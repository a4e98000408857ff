"""Package indexes of tests of environments."""

from __future__ import annotations

import pytest


@pytest.fixture
def dead_index(monkeypatch: pytest.MonkeyPatch) -> str:
    """An index where nobody listens is the only one; its address."""
    monkeypatch.delenv("UV_NO_INDEX")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    return "127.0.0.1:9"
