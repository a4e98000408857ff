"""Runs work under torch.profiler and gives what it saw as plain events, with its trace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.profiling.events import Event, Kind

PHASE_PREFIX = "phase:"
_KERNELS = ("kernel", "concurrent_kernel", "gpu_memset")
_COPIES = ("gpu_memcpy",)


@contextmanager
def mark_phase(name: str) -> Iterator[None]:
    """A window that :func:`capture` gives as an event of kind ``PHASE``."""
    from torch.profiler import record_function

    with record_function(PHASE_PREFIX + name):
        yield


def capture(
    work: Callable[[], None],
    *,
    warm_work: Callable[[], None],
    cuda: bool,
    warmup: int,
    shapes: bool,
    memory: bool,
    stacks: bool,
    trace: Path | None,
) -> list[Event]:
    """Call ``warm_work`` ``warmup`` times under a profiler that discards it, then ``work`` once.

    Parameters
    ----------
    cuda : bool
        Follow the device's work too.
    trace : Path or None
        ``*.json.gz``: gets the trace of ``work``, for Perfetto. Writing one takes 0.1 ms an event.
    """
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=warmup, active=1, repeat=1),
        record_shapes=shapes,
        profile_memory=memory,
        with_stack=stacks,
        with_flops=shapes,
    ) as profiler:
        for index in range(warmup + 1):
            if index < warmup:
                warm_work()
            else:
                work()
            profiler.step()
    if trace is not None:
        partial = trace.with_name(f"partial-{trace.name}")
        profiler.export_chrome_trace(str(partial))
        os.replace(partial, trace)
    # The profiler's own table is built in Python, 50 us an event, and counts marked ranges twice.
    results = profiler.profiler.kineto_results
    return list(_events(results.events(), shapes=shapes))


def _events(seen: Iterable[Any], *, shapes: bool = True) -> Iterator[Event]:
    for one in seen:
        kind = _kind(one)
        if kind is None:
            continue
        name = one.name()
        common: dict[str, Any] = {
            "kind": kind,
            "start_ns": one.start_ns(),
            "end_ns": one.end_ns(),
        }
        if kind is Kind.PHASE:
            yield Event(name.removeprefix(PHASE_PREFIX), **common)
        elif kind is Kind.OPERATOR:
            if shapes:
                common["shapes"] = tuple(map(tuple, one.shapes()))
                common["dtypes"] = tuple(one.dtypes())
                common["flops"] = one.flops()
            yield Event(
                name, **common, lane=one.start_thread_id(), correlation=one.correlation_id()
            )
        else:
            yield Event(
                name,
                **common,
                lane=one.device_resource_id(),
                correlation=one.linked_correlation_id(),
                moved_bytes=one.nbytes() if kind is Kind.COPY else 0,
            )


def _kind(event: Any) -> Kind | None:
    activity = event.activity_type()
    if activity == "user_annotation":
        return Kind.PHASE if event.name().startswith(PHASE_PREFIX) else None
    if activity == "cpu_op":
        return None if event.is_async() or event.is_hidden_event() else Kind.OPERATOR
    if activity in _KERNELS:
        return Kind.KERNEL
    # A marked range is listed on the device again (gpu_user_annotation): its kernels are there.
    return Kind.COPY if activity in _COPIES else None
