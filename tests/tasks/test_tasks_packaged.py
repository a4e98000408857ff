"""The packaged 135M model, for real: speed and quality figures that make sense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.measure.registry import find_task

Identity = Callable[..., dict[str, Any]]
PACKAGED = {"source": "packaged", "id": "smollm2_135m"}
# The conversion takes a while and half a gigabyte: this machine's own cache is used.
pytestmark = [
    pytest.mark.long,  # in short, a sweep of it is in tests/test_end_to_end.py
    pytest.mark.xdist_group("packaged_model"),
    pytest.mark.usefixtures("machine_cache"),
]


@pytest.mark.parametrize("quant", ["bf16", "nf4"])
def test_packaged_model_is_measured(
    identity: Identity, run: Callable[[dict[str, Any]], Any], quant: str
) -> None:
    asked = identity(quant, model=PACKAGED, prompt_tokens=32, new_tokens=4, quality_tokens=128)
    asked["device"]["threads"] = None
    assert find_task("inference").check(asked) is None
    events = run(asked)
    assert events.fact("parameters") == 134_515_008
    assert events.engaged("weights")["got"].endswith(" x 210")
    assert events.fact("quality_text") == "pydoc_topics"
    # What the model was trained to do: far better than chance (49,152), far from certain.
    assert 2 < events.value("reference_perplexity") < 100
    if quant == "bf16":
        assert events.value("weights_bits_per_parameter") == pytest.approx(16, abs=0.01)
        assert 0 < events.value("kl_to_reference") < 0.01
        assert events.value("top1_agreement") > 0.95
    else:
        assert 6 < events.value("weights_bits_per_parameter") < 7  # dense embeddings are in it
        assert 0.01 < events.value("kl_to_reference") < 1
        assert 0.5 < events.value("top1_agreement") < 1
