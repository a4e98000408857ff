"""Which software a number is made with: Python, packages with their build, what changes kernels."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.host.git import git_state

# Raised by hand when what a task measures changes: earlier numbers are then not of the same thing.
MEASURING_VERSION = 3
# Variables that choose kernels, their precision, how threads wait or the allocator. Those of a
# package that begin with its name count too.
_KERNELS = (
    *("ONEDNN_", "DNNL_", "MKL_", "OPENBLAS_CORETYPE", "ATEN_", "OMP_", "KMP_", "GOMP_", "GGML_"),
    *("CUDA_", "CUBLAS", "CUDNN_", "NVIDIA_TF32", "TORCH", "PYTORCH_", "BNB_", "OV_", "ORT_"),
    *("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES", "TRITON_"),
)
# Among them, what only says where something is, who may see it, or what this program sets itself.
_NOT_KERNELS = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_PATH"),
    *("CUDA_VERSION", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK"),
)
# Of any of them: where files are, and what is printed.
_NOT_KERNEL_ENDINGS = ("_CACHE", "_DIR", "_HOME", "_ROOT", "_OFFLINE", "_VERBOSITY", "LOG_LEVEL")


def software(packages: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Facts by name; of ``packages`` those that are installed.

    Parameters
    ----------
    packages : iterable of str
        Names of distributions.
    environment : mapping of str to str
        Of the process that measures, as far as somebody set it.
    """
    major, minor, _ = platform.python_version_tuple()
    found = {"python": f"{major}.{minor}", "measuring": str(MEASURING_VERSION)}
    named = sorted(packages)
    found |= {name: build for name in named if (build := build_of(name)) is not None}
    prefixes = (*_KERNELS, *(f"{name.upper().replace('-', '_')}_" for name in named))
    return found | {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(prefixes)
        and name not in _NOT_KERNELS
        and not name.endswith(_NOT_KERNEL_ENDINGS)
    }


@cache
def build_of(package: str) -> str | None:
    """Version with its local part (``2.13.0+cpu``), and the commit of one installed from source.

    None where it is not installed.
    """
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    return f"{distribution.version}{_commit(distribution.read_text('direct_url.json'))}"


def _commit(origin: str | None) -> str:
    """``@`` and the commit, of a package that was installed from a repository or a checkout."""
    if origin is None:
        return ""
    told = json.loads(origin)
    if commit := told.get("vcs_info", {}).get("commit_id"):
        return f"@{commit[:12]}"
    if not told.get("dir_info", {}).get("editable"):
        return ""
    directory = Path(unquote(urlsplit(told.get("url", "")).path))
    state = git_state(directory)
    commit = str(state["commit"] or "editable")[:12]
    return f"@{commit}{'+changes' if state.get('dirty') else ''}"
