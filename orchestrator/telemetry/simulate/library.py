"""Builds the simulated libnvidia-ml.so.1 and puts it where pynvml finds it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import UsageError, home_directory
from orchestrator.telemetry import nvml
from orchestrator.telemetry.nvml import SCENARIO_VARIABLE
from orchestrator.telemetry.simulate.scenario import HERE, Scenario, read_scenario

LIBRARY = "libnvidia-ml.so.1"
_SOURCES = ("nvml.c", "scenario.c", "scenario.h")
_FLAGS = ("-O1", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")


def build(cache: Path | None = None) -> Path:
    """The library, compiled once for these sources; :class:`UsageError` without a compiler."""
    sources = [HERE / name for name in _SOURCES]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    if cache is None:
        named = os.environ.get("ORCHESTRATOR_CACHE")
        cache = (
            Path(named).expanduser()
            if named
            else home_directory("ORCHESTRATOR_CACHE") / ".cache" / "orchestrator"
        )
    folder = cache / f"nvml-{digest}"
    library = folder / LIBRARY
    if library.exists():
        return library
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise UsageError("no C compiler to build the simulated NVML", fix="Install gcc or set CC")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / LIBRARY
        command = [compiler, *_FLAGS, f"-Wl,-soname,{LIBRARY}", "-o", str(made)]
        command += [str(path) for path in sources if path.suffix == ".c"] + ["-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UsageError(f"cannot build the simulated NVML: {done.stderr.strip()}")
        made.replace(library)  # two builders at once end up with one whole library
    return library


def environment(
    source: str | Path | Scenario, folder: Path, *, cache: Path | None = None
) -> dict[str, str]:
    """Variables under which a new process sees the scenario, which begins now.

    Parameters
    ----------
    folder : Path
        Where the scenario's line file is written; it must outlive the processes.
    """
    scenario = source if isinstance(source, Scenario) else read_scenario(source)
    library = build(cache)
    path = folder / f"{scenario.name}.scenario"
    path.write_text(scenario.lines(time.perf_counter_ns()))
    others = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    paths = [str(library.parent), *(p for p in others if p and p != str(library.parent))]
    return {"LD_LIBRARY_PATH": os.pathsep.join(paths), SCENARIO_VARIABLE: str(path)}


@contextmanager
def simulated(
    source: str | Path | Scenario, folder: Path, *, cache: Path | None = None
) -> Iterator[Scenario]:
    """Simulate GPUs in this process and those it starts; afterwards it has no driver again.

    The dynamic linker reads ``LD_LIBRARY_PATH`` once, when a process starts. In a running one the
    library is loaded here: a later request for its name is answered with what is loaded already.

    Raises
    ------
    ConfigError
        If the scenario cannot be read.
    UsageError
        If a real NVML is loaded already, or the library cannot be built.
    """
    scenario = source if isinstance(source, Scenario) else read_scenario(source)
    library = build(cache)
    if _loaded() not in (None, str(library)):
        raise UsageError(
            "this process has loaded NVML already",
            fix="Start it under the simulation: python -m orchestrator.telemetry.simulate",
        )
    before = {name: os.environ.get(name) for name in ("LD_LIBRARY_PATH", SCENARIO_VARIABLE)}
    os.environ.update(environment(scenario, folder, cache=cache))
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    nvml.forget_session()
    try:
        yield scenario
    finally:
        nvml.forget_session()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _loaded() -> str | None:
    if sys.platform != "linux":
        return None
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(LIBRARY) or "libnvidia-ml.so." in line:
            return line.split(maxsplit=5)[5]
    return None
