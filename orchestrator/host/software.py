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
MEASURING_VERSION = 1
# Variables that choose kernels, their precision or the allocator. Threads are the machine's.
_KERNELS = (
    *("ONEDNN_", "DNNL_", "MKL_", "OPENBLAS_CORETYPE", "ATEN_", "KMP_", "GOMP_", "GGML_", "BNB_"),
    *("CUDA_", "CUBLAS", "CUDNN_", "NVIDIA_TF32", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_"),
    *("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES", "TRITON_"),
)
# Among them, what only says where something is, who may see it, or what this program sets itself.
_NOT_KERNELS = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_PATH"),
    *("CUDA_VERSION", "MKL_NUM_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCH_HOME"),
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
)


def software(packages: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Facts by name; of ``packages`` those that are installed.

    Parameters
    ----------
    packages : iterable of str
        Names of distributions.
    environment : mapping of str to str
        Of the process that measures.
    """
    major, minor, _ = platform.python_version_tuple()
    found = {"python": f"{major}.{minor}", "measuring": str(MEASURING_VERSION)}
    found |= {name: build for name in sorted(packages) if (build := build_of(name)) is not None}
    return found | {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(_KERNELS) and name not in _NOT_KERNELS
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
