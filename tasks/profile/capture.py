"""Runs work under torch.profiler and gives what it saw as plain events, with its trace."""

from __future__ import annotations

import gc
import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from sys import intern
from typing import Any

from orchestrator.tasks.profile.profiler_events import Event, Kind

PHASE_PREFIX = "phase:"
_KERNELS = ("kernel", "concurrent_kernel", "gpu_memset")
_COPIES = ("gpu_memcpy",)
_BLOCK_BYTES = 1 << 20


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
        with tempfile.TemporaryDirectory() as directory:
            # torch's own compression takes seven times as long, for a tenth less.
            written = Path(directory, "trace.json")
            profiler.export_chrome_trace(str(written))
            with written.open("rb") as plain, gzip.open(partial, "wb", compresslevel=6) as packed:
                shutil.copyfileobj(plain, packed, _BLOCK_BYTES)
        os.replace(partial, trace)
    # The profiler's own table is built in Python, 50 us an event, and counts marked ranges twice.
    results = profiler.profiler.kineto_results
    with no_collection():
        return list(_events(results.events(), shapes=shapes))


@contextmanager
def no_collection() -> Iterator[None]:
    """A million events in a list are no garbage, but each collection would go through them all."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _events(seen: Iterable[Any], *, shapes: bool = True) -> Iterator[Event]:
    operator = Kind.OPERATOR
    for one in seen:
        kind = _kind(one)
        if kind is None:
            continue
        name, start_ns, end_ns = intern(one.name()), one.start_ns(), one.end_ns()
        if kind is operator:
            lane, correlation = one.start_thread_id(), one.correlation_id()
            if not shapes:
                yield Event(name, operator, start_ns, end_ns, lane, correlation)
                continue
            yield Event(
                name,
                operator,
                start_ns,
                end_ns,
                lane,
                correlation,
                shapes=tuple(map(tuple, one.shapes())),
                dtypes=tuple(one.dtypes()),
                flops=one.flops(),
            )
        elif kind is Kind.PHASE:
            yield Event(name.removeprefix(PHASE_PREFIX), kind, start_ns, end_ns)
        else:
            yield Event(
                name,
                kind,
                start_ns,
                end_ns,
                lane=one.device_resource_id(),
                correlation=one.linked_correlation_id(),
                moved_bytes=one.nbytes() if kind is Kind.COPY else 0,
            )


def _kind(event: Any) -> Kind | None:
    activity = event.activity_type()
    if activity == "cpu_op":
        return None if event.is_async() or event.is_hidden_event() else Kind.OPERATOR
    if activity == "user_annotation":
        return Kind.PHASE if event.name().startswith(PHASE_PREFIX) else None
    if activity in _KERNELS:
        return Kind.KERNEL
    # A marked range is listed on the device again (gpu_user_annotation): its kernels are there.
    return Kind.COPY if activity in _COPIES else None
