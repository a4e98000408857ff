"""The one boundary to NVML: sessions by UUID (MIG included), every NVML error translated.

Nothing else imports ``pynvml`` or sees its exceptions. A device is only ever opened by its UUID:
NVML's index is neither CUDA's nor Ray's, and knows nothing of ``CUDA_VISIBLE_DEVICES``.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from orchestrator.errors import OrchestratorError

SIMULATED_DRIVER = "simulated"
"""Prefix of the driver version that the simulated NVML reports."""

SCENARIO_VARIABLE = "ORCHESTRATOR_NVML_SCENARIO"
"""Names the scenario that the simulated NVML plays; set in every process that sees it."""

T = TypeVar("T")


class Kind(Enum):
    """What an NVML error means to someone who wanted a reading."""

    UNAVAILABLE = "unavailable"  # no driver, no library: no GPU can be read at all
    UNSUPPORTED = "unsupported"  # this GPU or driver cannot tell this: do not ask again
    FORBIDDEN = "forbidden"  # this user may not ask: do not ask again
    LOST = "lost"  # the GPU is gone: nothing of it can be read any more
    UNKNOWN_DEVICE = "unknown_device"  # no such UUID here
    TRANSIENT = "transient"  # nothing this time: ask again
    DEFECT = "defect"  # we asked wrongly


# NVML_ERROR_<name> -> what it means and the reason a person reads. Complete by test.
TRANSLATION: dict[str, tuple[Kind, str]] = {
    "UNINITIALIZED": (Kind.DEFECT, "NVML was not initialised"),
    "INVALID_ARGUMENT": (Kind.DEFECT, "NVML rejected an argument"),
    "NOT_SUPPORTED": (Kind.UNSUPPORTED, "this GPU does not support it"),
    "NO_PERMISSION": (Kind.FORBIDDEN, "no permission to read it"),
    "ALREADY_INITIALIZED": (Kind.DEFECT, "NVML was initialised twice"),
    "NOT_FOUND": (Kind.UNKNOWN_DEVICE, "no GPU with this UUID here"),
    "INSUFFICIENT_SIZE": (Kind.TRANSIENT, "the answer outgrew its buffer"),
    "INSUFFICIENT_POWER": (Kind.UNAVAILABLE, "the GPU's power cables are not attached"),
    "DRIVER_NOT_LOADED": (Kind.UNAVAILABLE, "the NVIDIA driver is not loaded"),
    "TIMEOUT": (Kind.TRANSIENT, "NVML timed out"),
    "IRQ_ISSUE": (Kind.UNAVAILABLE, "the kernel has an interrupt problem with the GPU"),
    "LIBRARY_NOT_FOUND": (Kind.UNAVAILABLE, "no NVIDIA driver here (libnvidia-ml.so.1 not found)"),
    "FUNCTION_NOT_FOUND": (Kind.UNSUPPORTED, "this driver is too old to report it"),
    "CORRUPTED_INFOROM": (Kind.UNSUPPORTED, "the GPU's infoROM is corrupted"),
    "GPU_IS_LOST": (Kind.LOST, "the GPU fell off the bus"),
    "RESET_REQUIRED": (Kind.LOST, "the GPU needs a reset"),
    "OPERATING_SYSTEM": (Kind.FORBIDDEN, "the operating system blocked the request"),
    "LIB_RM_VERSION_MISMATCH": (
        Kind.UNAVAILABLE,
        "driver and NVML library are of different versions (reboot after the driver update)",
    ),
    "IN_USE": (Kind.TRANSIENT, "the GPU is in use by another operation"),
    "MEMORY": (Kind.TRANSIENT, "NVML ran out of memory"),
    "NO_DATA": (Kind.TRANSIENT, "no data yet"),
    "VGPU_ECC_NOT_SUPPORTED": (Kind.UNSUPPORTED, "not possible on a vGPU with ECC"),
    "INSUFFICIENT_RESOURCES": (Kind.TRANSIENT, "NVML ran out of resources"),
    "FREQ_NOT_SUPPORTED": (Kind.UNSUPPORTED, "this frequency is not supported"),
    "ARGUMENT_VERSION_MISMATCH": (Kind.UNSUPPORTED, "this driver is too old to report it"),
    "DEPRECATED": (Kind.UNSUPPORTED, "this driver no longer tells"),
    "NOT_READY": (Kind.TRANSIENT, "the GPU is not ready"),
    "GPU_NOT_FOUND": (Kind.UNAVAILABLE, "no NVIDIA GPU here"),
    "INVALID_STATE": (Kind.TRANSIENT, "the GPU cannot report it in its present state"),
    "RESET_TYPE_NOT_SUPPORTED": (Kind.UNSUPPORTED, "this kind of reset is not supported"),
    "UNKNOWN": (Kind.TRANSIENT, "NVML failed without a reason"),
}

NO_PACKAGE = "the package nvidia-ml-py is not installed"
NO_GPU_HERE = frozenset(
    {NO_PACKAGE, *(TRANSLATION[name][1] for name in ("LIBRARY_NOT_FOUND", "GPU_NOT_FOUND"))}
)
"""Reasons of a machine that simply has no GPU; any other means that something is wrong with it."""


class NvmlError(OrchestratorError):
    """An NVML call failed; ``kind`` says whether asking again makes sense."""

    def __init__(self, what: str, *, kind: Kind, where: str | None = None) -> None:
        super().__init__(what, where=where)
        self.kind = kind


def load_pynvml() -> Any:
    """The ``pynvml`` module, or :class:`NvmlError` where nvidia-ml-py is not installed."""
    try:
        import pynvml
    except ImportError as error:
        raise NvmlError(NO_PACKAGE, kind=Kind.UNAVAILABLE) from error
    return pynvml


def translate(code: int, name_of: dict[int, str]) -> tuple[Kind, str]:
    """Kind and reason of an NVML return code; a code of a newer driver is transient."""
    return TRANSLATION.get(name_of.get(code, ""), (Kind.TRANSIENT, f"NVML error {code}"))


@dataclass(frozen=True)
class FieldValue:
    """One answer of ``nvmlDeviceGetFieldValues``: a number, or why there is none."""

    value: float | None
    kind: Kind | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ProcessMemory:
    """A process on a GPU, by its pid in the driver's namespace; bytes None where NVML cannot tell.

    ``compute`` is false for one that only draws (a display server).
    """

    pid: int
    used_bytes: int | None
    compute: bool = True


class NvmlSession:
    """NVML initialised once; :meth:`close` gives it back. Raises :class:`NvmlError` on opening.

    Attributes
    ----------
    driver_version, nvml_version : str
    simulated : bool
        The library is this project's simulation, not a driver.
    """

    def __init__(self) -> None:
        self.pynvml: Any = load_pynvml()
        prefix = "NVML_ERROR_"
        self._name_of = {
            getattr(self.pynvml, n): n[len(prefix) :]
            for n in dir(self.pynvml)
            if n.startswith(prefix)
        }
        self.call("nvmlInit")
        self._open = True
        self.driver_version = str(self.call("nvmlSystemGetDriverVersion"))
        version = self.call("nvmlSystemGetNVMLVersion")
        self.nvml_version = version.decode() if isinstance(version, bytes) else str(version)
        self.simulated = self.driver_version.startswith(SIMULATED_DRIVER)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call ``pynvml.<function>``; every failure becomes an :class:`NvmlError`."""
        try:
            return getattr(self.pynvml, function)(*arguments)
        except self.pynvml.NVMLError as error:
            kind, reason = translate(error.value, self._name_of)
            raise NvmlError(reason, where=function, kind=kind) from error
        except (AttributeError, self.pynvml.NVMLLibraryMismatchError) as error:
            reason = "this driver or nvidia-ml-py is too old to report it"
            raise NvmlError(reason, where=function, kind=Kind.UNSUPPORTED) from error
        except (UnicodeDecodeError, ValueError) as error:
            reason = f"NVML gave nonsense: {error}"
            raise NvmlError(reason, where=function, kind=Kind.TRANSIENT) from error

    def ask(self, function: str, *arguments: Any, default: T) -> Any | T:
        """Like :meth:`call`, with ``default`` where NVML cannot tell."""
        try:
            return self.call(function, *arguments)
        except NvmlError:
            return default

    def handle(self, uuid: str) -> Any:
        """The device (or MIG slice) with this UUID; raises :class:`NvmlError`."""
        return self.call("nvmlDeviceGetHandleByUUID", uuid)

    def fields(self, handle: Any, ids: Sequence[int]) -> list[FieldValue]:
        """Several field values in one call, each with its own success or reason."""
        # Pairs with the scope: pynvml tries a pair first and pays an exception for a bare id.
        answers = self.call("nvmlDeviceGetFieldValues", handle, [(i, 0) for i in ids])
        # Through the buffer: pynvml's attribute access costs a microsecond a field, every round.
        return [self._field(*answer) for answer in _FIELD_VALUE.iter_unpack(answers)]

    def _field(self, kind_of_value: int, code: int, raw: bytes) -> FieldValue:
        if code:
            kind, reason = translate(code, self._name_of)
            return FieldValue(None, kind, reason)
        unpack = _VALUES.get(kind_of_value)
        if unpack is None:
            return FieldValue(None, Kind.UNSUPPORTED, f"unknown value type {kind_of_value}")
        return FieldValue(float(unpack(raw)[0]))

    def processes(self, handle: Any) -> list[ProcessMemory]:
        """Processes on a device by pid, those that compute first; raises :class:`NvmlError`."""
        found: dict[int, ProcessMemory] = {}
        for process in self.call("nvmlDeviceGetComputeRunningProcesses", handle):
            found[process.pid] = ProcessMemory(process.pid, process.usedGpuMemory)
        for process in self.ask("nvmlDeviceGetGraphicsRunningProcesses", handle, default=()):
            drawing = ProcessMemory(process.pid, process.usedGpuMemory, compute=False)
            found.setdefault(process.pid, drawing)
        return list(found.values())

    def used_bytes(self, handle: Any) -> int:
        """Memory in use on a device or MIG slice; raises :class:`NvmlError`."""
        try:
            found = self.call("nvmlDeviceGetMemoryInfo", handle, self.pynvml.nvmlMemory_v2)
        except NvmlError as error:
            if error.kind is not Kind.UNSUPPORTED:
                raise
            # Before driver 510: "used" then includes what the driver reserves for itself.
            found = self.call("nvmlDeviceGetMemoryInfo", handle)
        return int(found.used)

    def left_bytes(self, handle: Any) -> int:
        """:meth:`used_bytes` without what processes hold that only draw (a desktop's are there
        before and after every attempt)."""
        used = self.used_bytes(handle)
        try:
            drawing = [p.used_bytes or 0 for p in self.processes(handle) if not p.compute]
        except NvmlError:
            return used
        return max(0, used - sum(drawing))

    def close(self) -> None:
        """Shut NVML down; safe to call twice."""
        if self._open:
            self._open = False
            self.ask("nvmlShutdown", default=None)


# nvmlFieldValue_t: ids, timestamp and latency skipped; type, return code, the union's eight bytes.
_FIELD_VALUE = struct.Struct("@24xII8s")
# How to read the union for each NVML_VALUE_TYPE_*; its members all begin at its first byte.
_VALUES: dict[int, Callable[[bytes], tuple[float]]] = {
    number: struct.Struct(f"@{code}{8 - size}x").unpack
    for number, code, size in (
        *((0, "d", 8), (1, "I", 4), (2, "L", 8), (3, "Q", 8), (4, "q", 8), (5, "i", 4)),
        (6, "H", 2),
    )
}

_RENUMBERED = (580, 82)


def throttle_field_ids(driver_version: str, pynvml: Any) -> dict[str, int]:
    """Field ids of the cumulative clocks-event counters (ns) that this driver understands.

    Fields 251 to 273 were renumbered between driver 580 TRD1 and TRD2 (580.82), so an id asked of
    the wrong driver answers with another quantity: see "Known issues" of NVIDIA's NVML reference.
    Drivers before 570 have only the older policy counters, whose ids never moved.
    """
    ids = {
        "throttle_power_cap_s": pynvml.NVML_FI_DEV_PERF_POLICY_POWER,
        "throttle_thermal_policy_s": pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL,
        "throttle_sync_boost_s": pynvml.NVML_FI_DEV_PERF_POLICY_SYNC_BOOST,
    }
    found = re.search(r"(\d+)\.(\d+)", driver_version)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version >= _RENUMBERED:
        first = 269
    elif version >= (570, 0):
        first = 251
    else:
        return ids
    names = ("throttle_sw_thermal_s", "throttle_hw_thermal_s", "throttle_power_brake_s")
    return ids | {name: first + i for i, name in enumerate(names)}


def answered(ask: Callable[[], T], timeout_s: float) -> T | None:
    """What ``ask()`` returns; None where it took longer.

    On a thread of its own: a driver that hangs must not take the supervisor with it.
    """
    found: list[T] = []
    asking = threading.Thread(
        target=lambda: found.append(ask()), name="telemetry-nvml-ask", daemon=True
    )
    asking.start()
    asking.join(timeout_s)
    return found[0] if found else None


_shared: list[NvmlSession] = []


def shared_session() -> NvmlSession:
    """The session this process keeps open: initialising a driver costs tens of milliseconds."""
    if not _shared:
        _shared.append(NvmlSession())
    return _shared[0]


def forget_session(*, hanging: bool = False) -> None:
    """Close the shared session, so that the next one asks NVML again.

    ``hanging``: without a word to the driver, which would not answer.
    """
    while _shared:
        session = _shared.pop()
        if not hanging:
            session.close()
