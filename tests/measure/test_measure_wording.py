from __future__ import annotations

import pytest

from orchestrator.measure.wording import counted, gib


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 trials"), (1, "1 trial"), (2, "2 trials"), (-1, "-1 trials")]
)
def test_one_is_no_plural(number: int, text: str) -> None:
    assert counted(number, "trial") == text


def test_sizes_in_binary_units() -> None:
    assert gib(1.5 * 2**30) == "1.5 GiB"
    assert gib(2**30 // 8, 2) == "0.12 GiB"
    assert gib(7 * 2**30, 0) == "7 GiB"
