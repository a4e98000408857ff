"""task=profile: arithmetic on events made by hand, and a real profile of a tiny model."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.measure import HostClock, InputError, Recorder
from orchestrator.measure.registry import find_task
from orchestrator.tasks.profile.attribution import (
    Operator,
    attribute,
    flops_of,
    input_bytes,
    self_flops,
    self_times,
    union_ns,
)
from orchestrator.tasks.profile.capture import _events
from orchestrator.tasks.profile.profile import Ceiling
from orchestrator.tasks.profile.profiler_events import Event, Kind
from testing.checks import check_of

Identity = Callable[..., dict[str, Any]]
check = check_of("profile")


def operator(name: str, start: int, end: int, **more: Any) -> Event:
    return Event(name, Kind.OPERATOR, start, end, **more)


def phase(name: str, start: int, end: int) -> Event:
    return Event(name, Kind.PHASE, start, end)


def kernel(start: int, end: int, correlation: int = 0, lane: int = 7, name: str = "gemm") -> Event:
    return Event(name, Kind.KERNEL, start, end, lane=lane, correlation=correlation)


def test_a_caller_has_no_part_of_the_time_of_what_it_calls() -> None:
    events = [operator("inner", 20, 30), operator("outer", 0, 100), operator("leaf", 22, 25)]
    assert self_times(events) == [7, 90, 3]


def test_threads_do_not_nest_in_each_other() -> None:
    events = [operator("a", 0, 100, lane=1), operator("b", 10, 50, lane=2)]
    assert self_times(events) == [100, 40]


def test_a_call_that_outlasts_its_caller_is_refused() -> None:
    with pytest.raises(ValueError, match="outlasts"):
        self_times([operator("a", 0, 10), operator("b", 5, 15)])


def test_a_product_is_counted_once_however_many_calls_it_goes_through() -> None:
    shapes = ((4, 8), (8, 16))
    events = [
        operator("bitsandbytes::int8_linear_matmul", 0, 90, shapes=shapes),
        operator("wrapper", 5, 80),
        operator("aten::_int_mm", 10, 70, shapes=shapes),
        # A call of its own operations, with some others inside.
        operator("attention", 100, 200, flops=500, shapes=((1,),)),
        operator("aten::mul", 110, 120, flops=20, shapes=((1,),)),
        operator("aten::mm", 100, 200, flops=7, shapes=((1,),), lane=3),
    ]
    assert self_flops(events) == [0, 0, 2 * 4 * 8 * 16, 480, 20, 7]


def test_host_profile_splits_by_phase_and_adds_up() -> None:
    events = [
        phase("prefill", 0, 100),
        phase("decode", 200, 300),
        operator("linear", 10, 60),
        operator("addmm", 20, 50, flops=1000, shapes=((4, 5), (5, 6)), dtypes=("float", "float")),
        operator("addmm", 210, 240),
        operator("softmax", 250, 260),
        operator("outside", 120, 180),
    ]
    profile = attribute(events, device=False)
    assert [(o.name, o.self_ns, o.calls) for o in profile.operators] == [
        ("addmm", 60, 2),
        ("linear", 20, 1),
        ("softmax", 10, 1),
    ]
    assert profile.operators[0].phases == {"prefill": 30, "decode": 30}
    assert profile.operators[0].read_bytes == (20 + 30) * 4
    assert profile.operators[0].shapes == {((4, 5), (5, 6)): 1, (): 1}
    assert sum(map(profile.share, profile.operators)) == pytest.approx(1)
    assert profile.wall_ns == {"prefill": 100, "decode": 100}
    assert profile.busy_ns == {"prefill": 50, "decode": 40}
    assert profile.busy_fraction == pytest.approx(0.45)


def test_device_time_goes_to_the_operator_that_launched_and_overlaps_count_once() -> None:
    events = [
        phase("prefill", 0, 100),
        phase("decode", 100, 200),
        operator("linear", 0, 20, correlation=1),
        operator("addmm", 5, 15, correlation=2),
        operator("view", 30, 35, correlation=3),
        kernel(20, 60, correlation=2),
        kernel(40, 80, correlation=2, lane=8),
        # Launched in the prefill, runs on past its end: still the prefill's work.
        kernel(90, 110, correlation=2),
        Event("Memcpy HtoD (Pageable)", Kind.COPY, 120, 130, moved_bytes=512),
    ]
    profile = attribute(events, device=True)
    assert [(o.name, o.self_ns, o.kernels) for o in profile.operators] == [
        ("addmm", 100, 3),
        ("Memcpy HtoD (Pageable)", 10, 1),
    ]
    assert profile.operators[0].phases == {"prefill": 100}
    assert profile.busy_ns == {"prefill": 70, "decode": 20}
    assert profile.busy_fraction == pytest.approx(0.45)
    assert profile.copies["HtoD"].moved_bytes == 512
    assert sum(map(profile.share, profile.operators)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("events", "device", "said"),
    [
        ([operator("a", 0, 1)], False, "no phase"),
        ([phase("prefill", 0, 9)], False, "no operator"),
        ([phase("prefill", 0, 9), operator("a", 0, 5)], True, "no kernel"),
        ([phase("prefill", 0, 9), phase("decode", 5, 12), operator("a", 0, 5)], False, "overlap"),
    ],
)
def test_an_empty_or_contradictory_profile_is_an_error(
    events: list[Event], device: bool, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        attribute(events, device=device)


@st.composite
def call_trees(draw: st.DrawFn, start: int = 0, end: int = 1000) -> list[Event]:
    """Calls that follow each other or nest, inside one window."""
    events: list[Event] = []
    at = start
    while at < end and len(events) < 12 and draw(st.booleans()):
        begin = draw(st.integers(at, end - 1))
        stop = draw(st.integers(begin + 1, end))
        events.append(operator(draw(st.sampled_from("abc")), begin, stop))
        if stop - begin > 2 and draw(st.booleans()):
            events.extend(draw(call_trees(begin, stop)))
        at = stop
    return events


def covered_ns(intervals: Sequence[Sequence[int]]) -> int:
    return union_ns(*np.array(intervals, np.int64).reshape(-1, 2).T)


@given(call_trees())
def test_self_times_add_up_to_what_is_covered(events: list[Event]) -> None:
    own = self_times(events)
    assert all(ns >= 0 for ns in own)
    assert sum(own) == covered_ns([(e.start_ns, e.end_ns) for e in events])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted), max_size=12))
def test_union_counts_each_moment_once(intervals: list[list[int]]) -> None:
    covered = {moment for start, end in intervals for moment in range(start, end)}
    assert covered_ns(intervals) == len(covered)


def test_bound_is_a_matter_of_intensity_and_unknown_stays_unknown() -> None:
    ceiling = Ceiling("float32", flops_per_s=100e9, bytes_per_s=10e9)
    assert ceiling.bound(Operator("mm", flops=1000, read_bytes=10)) == "compute"
    assert ceiling.bound(Operator("mv", flops=10, read_bytes=1000)) == "memory"
    assert ceiling.bound(Operator("opaque", read_bytes=1000)) is None


def test_input_bytes_know_dtypes_and_skip_scalars() -> None:
    dtypes = ("c10::BFloat16", "Scalar", "long int")
    assert input_bytes(((2, 3), (), (4,)), dtypes) == 2 * 3 * 2 + 4 * 8


def test_attention_and_packed_products_have_operations_too() -> None:
    from torch.utils.flop_counter import sdpa_flop_count

    q, k, v = (2, 6, 5, 16), (2, 6, 9, 16), (2, 6, 9, 8)
    name = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert flops_of(name, (q, k, v, (), ())) == sdpa_flop_count(q, k, v) > 0
    # 576 inputs, 192 outputs, two values a byte: as the CPU packs them, and as CUDA does.
    for packed in ((192, 288), (192 * 288, 1)):
        shapes = ((1, 3, 576), packed, ())
        assert flops_of("bitsandbytes::gemv_4bit", shapes) == 2 * 3 * 576 * 192
    assert flops_of("aten::_int_mm", ((4, 8), (8, 16))) == 2 * 4 * 8 * 16
    assert flops_of("aten::copy_", ((4, 8), (4, 8))) == 0


def _seen(activity: str, name: str, **more: Any) -> Any:
    values = {
        "activity_type": activity,
        "name": name,
        "start_ns": 1,
        "end_ns": 5,
        "start_thread_id": 1,
        "device_resource_id": 7,
        "correlation_id": 3,
        "linked_correlation_id": 2,
        "shapes": [],
        "dtypes": [],
        "flops": 0,
        "nbytes": 64,
        "is_async": False,
        "is_hidden_event": False,
        **more,
    }
    return SimpleNamespace(**{key: (lambda value=value: value) for key, value in values.items()})


def test_annotations_and_launch_calls_are_no_work() -> None:
    found = list(
        _events(
            [
                _seen("user_annotation", "phase:decode"),
                _seen("user_annotation", "ProfilerStep#1"),
                _seen("gpu_user_annotation", "phase:decode"),
                _seen("cuda_runtime", "cudaLaunchKernel"),
                _seen("python_function", "forward"),
                _seen("cpu_instant_event", "[memory]"),
                _seen("cpu_op", "aten::mm"),
                _seen("kernel", "gemm"),
                _seen("gpu_memcpy", "Memcpy DtoH"),
            ]
        )
    )
    assert [(e.name, e.kind) for e in found] == [
        ("decode", Kind.PHASE),
        ("aten::mm", Kind.OPERATOR),
        ("gemm", Kind.KERNEL),
        ("Memcpy DtoH", Kind.COPY),
    ]
    assert [e.correlation for e in found] == [0, 3, 2, 2]
    assert found[3].moved_bytes == 64


def test_tiny_model_is_profiled_for_real(identity: Identity, tmp_path: Path) -> None:
    asked = identity(task="profile", scenario="custom", prompt_tokens=32, decode_steps=4)
    assert check(asked) is None
    events: list[dict[str, Any]] = []
    find_task("profile").run(asked, Recorder(events.append, HostClock(), tmp_path))
    values = {e["name"]: e["value"] for e in events if e["e"] == "value"}
    assert 0 < values["busy_fraction"] <= 1
    assert values["prefill.self_share"] + values["decode.self_share"] == pytest.approx(1)

    table = json.loads((tmp_path / "operators.json").read_text())
    rows = {row["name"]: row for row in table["operators"]}
    assert abs(sum(row["share"] for row in rows.values()) - 1) < 1e-9
    # Seven products a layer and the head, two layers; one prefill and four steps.
    linear = rows["aten::linear"]["calls"]
    assert linear == (2 * 7 + 1) * 5
    assert rows["aten::mm"]["flops"] > 0
    assert rows["aten::embedding"]["flops"] is None
    assert rows["aten::mm"]["bound"] in ("compute", "memory")
    assert not [name for name in rows if name.startswith(("phase:", "ProfilerStep"))]
    assert sum(table["profiled_wall_s"].values()) >= table["self_s"]

    with gzip.open(tmp_path / "trace.json.gz", "rt") as stream:
        trace = json.load(stream)
    marked = [e["name"] for e in trace["traceEvents"] if e.get("cat") == "user_annotation"]
    assert marked.count("phase:prefill") == marked.count("phase:decode") == 1
    assert any(e.get("ph") == "X" and e["name"] == "aten::mm" for e in trace["traceEvents"])
    assert sorted(e["name"] for e in events if e["e"] == "artifact") == [
        "operators.json",
        "trace.json.gz",
    ]
    assert not [name for name in tmp_path.iterdir() if name.name.startswith("partial-")]


def test_a_long_decode_is_counted_whole_and_traced_in_part(
    identity: Identity, tmp_path: Path
) -> None:
    asked = identity(task="profile", scenario="custom", prompt_tokens=4, decode_steps=20)
    events: list[dict[str, Any]] = []
    find_task("profile").run(asked, Recorder(events.append, HostClock(), tmp_path))
    table = json.loads((tmp_path / "operators.json").read_text())
    rows = {row["name"]: row for row in table["operators"]}
    assert rows["aten::linear"]["calls"] == (2 * 7 + 1) * 21
    assert {e["key"]: e["value"] for e in events if e["e"] == "fact"}["trace_decode_steps"] == 8
    with gzip.open(tmp_path / "trace.json.gz", "rt") as stream:
        names = [e.get("name") for e in json.load(stream)["traceEvents"]]
    assert names.count("aten::linear") == (2 * 7 + 1) * 9


def test_bad_scenarios_are_refused_in_a_line(identity: Identity, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not one of prefill_dominant"):
        check(identity(task="profile", scenario="prefil"))
    with pytest.raises(ConfigError, match="lengths of its own"):
        check(identity(task="profile", prompt_tokens=5))
    with pytest.raises(ConfigError, match="prompt_tokens"):
        check(identity(task="profile", scenario="custom", decode_steps=5))
    too_long = check(identity(task="profile", scenario="prefill_dominant"))
    assert too_long is not None
    assert "context of 512" in too_long
    with pytest.raises(InputError, match="context of 512"):
        find_task("profile").run(
            identity(task="profile"), Recorder(lambda event: None, HostClock(), tmp_path)
        )
