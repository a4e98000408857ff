"""Simulated GPUs for tests: each scenario is played to a forked child of its own."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 -- once here, not once in every forked child
import pytest

from orchestrator.telemetry.simulate.library import build, simulated
from orchestrator.telemetry.simulate.scenario import scenario_of
from testing.waiting import PATIENCE_S

Play = Callable[..., Any]


@pytest.fixture(scope="session")
def library_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled once a test session from the sources as they are."""
    cache = tmp_path_factory.mktemp("nvml")
    build(cache)
    return cache


@pytest.fixture
def play(library_cache: Path, tmp_path: Path) -> Play:
    """``play(scenario, function, *arguments)``: what the function answers under those GPUs.

    ``scenario`` is the name of a shipped one or a JSON tree. The function runs in a forked child:
    a library once loaded stays, and a later test may want the machine's own driver.
    """

    def run(scenario: str | dict[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        child = fork.Process(
            target=_play, args=(theirs, scenario, library_cache, tmp_path, function, arguments)
        )
        child.start()
        theirs.close()
        try:
            assert ours.poll(PATIENCE_S), "the child did not answer"
            good, result = ours.recv()
        finally:
            child.kill()
            child.join()
        assert good, result
        return result

    return run


def _play(
    pipe: Connection,
    scenario: str | dict[str, Any],
    cache: Path,
    folder: Path,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    try:
        source = scenario if isinstance(scenario, str) else scenario_of(scenario, "test")
        with simulated(source, folder, cache=cache):
            pipe.send((True, function(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
