"""What a server exports of itself, read as series."""

from __future__ import annotations

import pytest

from orchestrator.tasks.serving.server_metrics import series_of

TEXT = """# HELP vllm:running Requests.
# TYPE vllm:running gauge
vllm:running{engine="0",model_name="m"} %d
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{engine="0",model_name="m"} %d
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e9
# TYPE vllm:done counter
vllm:done_total{engine="0",reason="stop"} 1
vllm:done_total{engine="0",reason="length"} 2
# TYPE vllm:ttft_seconds histogram
vllm:ttft_seconds_bucket{le="0.1"} 1
vllm:ttft_seconds_bucket{le="+Inf"} 2
vllm:ttft_seconds_count 2
vllm:ttft_seconds_sum 0.3
process_resident_memory_bytes 5e8
unknown NaN
"""


def test_each_number_is_a_series_and_counters_count() -> None:
    texts = [(10**9 * (k + 1), (TEXT % (k, 100 * k)).encode()) for k in range(3)]
    found = {one.metric: one for one in series_of(texts, 10**9)}
    assert sorted(found) == [
        "process_resident_memory_bytes",
        'vllm:done_total{reason="length"}',
        'vllm:done_total{reason="stop"}',
        "vllm:prompt_tokens_total",
        "vllm:running",
        "vllm:ttft_seconds_count",
        "vllm:ttft_seconds_sum",
    ]
    assert {one.source for one in found.values()} == {"server"}
    assert list(found["vllm:prompt_tokens_total"].values) == [0, 100, 200]
    assert list(found["vllm:running"].t_ns) == [10**9, 2 * 10**9, 3 * 10**9]
    assert found["process_resident_memory_bytes"].unit == "bytes"


@pytest.mark.parametrize(
    "text", [b"", b"<html><body>ok</body></html>", b'{"data": [{"id": "x"}]}', b"\xff", b"a b c d"]
)
def test_what_is_no_such_text_is_left_out(text: bytes) -> None:
    assert len(series_of([(1, text), (2, b"good 1\n")], 0)) == 1
    assert len(series_of([(1, text)], 0)) == 0
