"""Which environment a measured process gets: what it needs, nothing secret it does not."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from orchestrator.attempt import Slot
from orchestrator.host.secrets import without_secrets

ATTEMPT_VARIABLE = "ORCHESTRATOR_ATTEMPT"

# Of the supervisor and the tracking store; a measured process has no business with either.
_FOREIGN_PREFIXES = ("RAY_", "MLFLOW_")

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "warning",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "BITSANDBYTES_NOWELCOME": "1",
    "PYTHONUNBUFFERED": "1",
}
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
# How many threads work and on which cores is the trial's and its slot's to say. OpenMP obeys these
# without a word: torch and llama.cpp still count the threads that they asked for.
_THREADS_OTHERWISE = re.compile(
    r"(?:OMP|GOMP|KMP|MKL)_.*(?:LIMIT|DYNAMIC|LEVELS|NESTED|PLACE|BIND|AFFINITY|SUBSET|TEAMS|DOMAIN)"
)


def python_module(name: str, python: str = sys.executable) -> list[str]:
    """The command that calls ``main(words)`` of a module of ours with the words that follow it.

    Like ``python -m`` but for the current directory, which is not imported from: it is where
    somebody started Ray on this node, perhaps in another checkout than the one that is measured.
    """
    start = "import sys; sys.path[:] = filter(None, sys.path);"
    return [python, "-c", f"{start} from {name} import main; main(sys.argv[2:])", name]


def server_environment(
    base: Mapping[str, str],
    extra: Mapping[str, str],
    *,
    hub: bool = True,
    keep: Collection[str] = (),
    import_path: str | None = None,
) -> dict[str, str]:
    """The fork server's whole environment.

    Parameters
    ----------
    base : mapping
        The supervisor's environment; secrets are left out, and what would set other threads than
        the trial asks for.
    extra : mapping
        Set on top, secrets or not: whoever passes it means it.
    hub : bool
        Whether the model hub's token stays: a gated model cannot be fetched without it.
    keep : collection of str
        Secrets that stay, by name.
    import_path : str, optional
        What the server imports from beside its interpreter; by default what the supervisor does.
    """
    kept = {
        name: value
        for name, value in without_secrets(base, hub=hub, keep=keep).items()
        if not name.startswith(_FOREIGN_PREFIXES) and not _THREADS_OTHERWISE.match(name)
    }
    # One thread: OpenBLAS starts its pool when numpy is imported, and a process with threads must
    # not fork. Asking NVML whether there is a GPU keeps torch from initialising CUDA to know.
    kept |= {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    return {**kept, **_QUIET, "PYTHONPATH": import_path or _import_path(base), **extra}


def attempt_environment(
    slot: Slot, threads: int, attempt_id: str, temporary: Path
) -> dict[str, str]:
    """What one attempt's process sets on top of the server's environment."""
    return {
        # Always set: an unset variable means every GPU of the machine.
        "CUDA_VISIBLE_DEVICES": slot.cuda_visible_devices,
        ATTEMPT_VARIABLE: attempt_id,
        # What its environment lacks to make something once, this Python has.
        "ORCHESTRATOR_PYTHON": sys.executable,
        "TMPDIR": str(temporary),
        **dict.fromkeys(_THREADS, str(threads)),
    }


def redact(content: bytes, secrets: Iterable[str]) -> bytes:
    """``content`` with every secret value replaced by asterisks."""
    for secret in secrets:
        content = content.replace(secret.encode(errors="surrogateescape"), b"********")
    return content


def _import_path(base: Mapping[str, str]) -> str:
    """Whatever the supervisor imports from beyond its interpreter, a child must import too."""
    here = str(Path(__file__).resolve().parents[2])
    installed = tuple(os.path.join(prefix, "") for prefix in (sys.prefix, sys.base_prefix))
    own = [p for p in sys.path if not p.startswith(installed) and os.path.isdir(p)]
    asked = base.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(p for p in (here, *own, *asked) if p))
