"""What a measurement ran on and with: host, driver, packages, git, command. Never a secret.

Nothing here is part of a trial's identity; it is what makes two numbers of one trial comparable,
or says why they are not.
"""

from __future__ import annotations

import copy
import getpass
import os
import platform
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.host import cgroup, cpu, memory
from orchestrator.host.git import git_state
from orchestrator.record.redact import Redactor

_HEADER = {key: re.compile(rf"^{key}: *(\S+)", re.MULTILINE) for key in ("Name", "Version")}


def provenance(*, command: Sequence[str] | None = None) -> dict[str, Any]:
    """This process's surroundings as plain JSON.

    Parameters
    ----------
    command : sequence of str, optional
        The command line; default this process's own. Secrets in it are replaced.

    Notes
    -----
    What cannot be read is absent or None. The unchanging part is gathered once a process.
    """
    redactor = Redactor.of_environment()
    facts = node_provenance()
    environment = facts.pop("environment")
    return {
        **facts,
        "command": redactor.command(list(sys.argv if command is None else command)),
        "user": user_name(),
        "directory": redactor.text(str(Path.cwd())),
        "git": code_git_state(),
        "environment": environment,
    }


def node_provenance() -> dict[str, Any]:
    """The part that belongs to the node an attempt runs on; command and git are the driver's."""
    facts = copy.deepcopy(_unchanging())
    # A process may be moved to other cores.
    facts["cpu"]["cores_usable"] = len(cpu.usable_cores())
    facts["memory_available_bytes"] = memory.available_bytes()
    # None means no limit; cpus are cores' worth of time.
    facts["cgroup"] = {"cpus": cgroup.cpu_limit(), "memory_bytes": cgroup.memory_limit_bytes()}
    facts["environment"] = relevant_variables(os.environ)
    return facts


@cache
def _unchanging() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "os": os_name(),
        "kernel": platform.release(),
        "cpu": cpu_facts(),
        "memory_bytes": memory.physical_bytes(),
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Every installed distribution and its version, by normalised name."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        # Not parsed as the e-mail it is: for two hundred of them that takes most of a second.
        name, version = (_HEADER[key].search(text) for key in ("Name", "Version"))
        if name and version:
            # The first on the path is the one that gets imported.
            found.setdefault(name[1].lower().replace("_", "-"), version[1])
    return dict(sorted(found.items()))


def user_name() -> str | None:
    """Who runs this; None for a user id without a name, as containers have them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def os_name() -> str:
    """The distribution's own name for itself, else the kernel's."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return f"{platform.system()} {platform.release()}"


_FEATURES = frozenset(
    ["avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "bf16", "sve"]
)


def cpu_facts() -> dict[str, Any]:
    """Model, architecture and cores of the machine."""
    return {
        "model": cpu.model(),
        "architecture": platform.machine(),
        "cores_logical": os.cpu_count(),
        "cores_physical": cpu.physical_cores(),
        "features": sorted(cpu.flags() & _FEATURES),
    }


@cache
def code_git_state() -> dict[str, Any]:
    """Commit of the checkout this package runs from; of the current directory where installed."""
    state = git_state(Path(__file__).resolve().parent)
    return state if state.get("commit") else git_state(Path.cwd())


def relevant_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that change how fast or what is computed; never the whole environment."""
    prefixes = (
        "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NCCL_", "TORCH_", "PYTORCH_", "HF_", "TRANSFORMERS_",
        "TOKENIZERS_", "RAY_", "BNB_", "KMP_", "GOMP_", "NUMEXPR_", "MALLOC_", "LD_PRELOAD",
    )  # fmt: skip
    chosen = {k: v for k, v in sorted(environment.items()) if k.startswith(prefixes)}
    clean: dict[str, str] = Redactor.of_environment().value(chosen)
    return clean
