"""What GPUs this machine has, by UUID, and which of them a process may use."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.telemetry.nvml import NO_GPU_HERE, Kind, NvmlError, NvmlSession


@dataclass(frozen=True)
class Device:
    """A GPU, or one MIG slice of one.

    Attributes
    ----------
    uuid : str
        ``GPU-...`` or ``MIG-...``: what goes into ``CUDA_VISIBLE_DEVICES``.
    pci_bus_id : str
        Of the physical GPU; devices are listed in its order (``CUDA_DEVICE_ORDER=PCI_BUS_ID``).
    memory_bytes : int
        Total memory of the device or slice.
    compute_capability : str or None
        ``9.0`` and the like.
    parent_uuid : str or None
        The GPU a MIG slice is cut from.
    simulated : bool
        The device is played by the simulated NVML: no CUDA program can use it.
    """

    uuid: str
    name: str
    pci_bus_id: str
    memory_bytes: int
    driver_version: str
    compute_capability: str | None = None
    power_limit_w: float | None = None
    sm_clock_max_hz: float | None = None
    parent_uuid: str | None = None
    simulated: bool = False


@dataclass(frozen=True)
class Inventory:
    """The devices of this machine; ``reason`` says why there are none, or why some are missing.

    ``broken``: there is a driver, and it does not do what it should.
    """

    devices: tuple[Device, ...] = ()
    reason: str | None = None
    driver_version: str | None = None
    simulated: bool = False
    broken: bool = False


def inventory() -> Inventory:
    """Ask NVML for every device; never raises."""
    try:
        session = NvmlSession()
    except NvmlError as error:
        return Inventory(reason=error.what, broken=error.what not in NO_GPU_HERE)
    try:
        return _list(session)
    except NvmlError as error:
        return Inventory((), error.what, session.driver_version, session.simulated, broken=True)
    finally:
        session.close()


def devices() -> list[Device]:
    """Every GPU or MIG slice here in PCI order; :func:`inventory` says why there is none."""
    return list(inventory().devices)


def device_kind_here() -> str:
    """``cuda`` where torch can use a GPU of this machine, else ``cpu``; imports no torch.

    A simulated GPU cannot run CUDA: work on it runs on the CPU.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return "cpu"
    if not _torch_has_cuda():
        return "cpu"
    found = inventory()
    return "cuda" if found.devices and not found.simulated else "cpu"


def resolve_visible(visible: str | None, present: Sequence[Device]) -> tuple[Device, ...]:
    """The devices that a ``CUDA_VISIBLE_DEVICES`` names, by UUID or position in PCI order.

    A UUID may be cut short as long as it names one device. None or ``all`` means every device. As
    in CUDA, the first entry that names nothing ends the list. Hand the result's UUIDs on: they mean
    the same GPU in every order.
    """
    if visible is None or visible.strip() == "all":
        return tuple(present)
    chosen: list[Device] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit():
            matches = [present[int(entry)]] if int(entry) < len(present) else []
        else:
            matches = [d for d in present if entry and d.uuid.startswith(entry)]
        if len(matches) != 1 or matches[0] in chosen:
            break
        chosen.append(matches[0])
    return tuple(chosen)


def _torch_has_cuda() -> bool:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return False
    found = re.search(r"^cuda(?:\s*:[^=]+)?\s*=\s*(.+)$", text, re.MULTILINE)
    return found is not None and found[1].strip() != "None"


def _list(session: NvmlSession) -> Inventory:
    found: list[Device] = []
    lost: list[str] = []
    for index in range(session.call("nvmlDeviceGetCount")):
        try:
            handle = session.call("nvmlDeviceGetHandleByIndex", index)
            found += _slices(session, handle) or [describe(session, handle)]
        except NvmlError as error:
            lost.append(f"GPU {index}: {error.what}")
    found.sort(key=lambda d: d.pci_bus_id)
    reason = "; ".join(lost) or (None if found else "no NVIDIA GPU here")
    broken = bool(lost)
    return Inventory(tuple(found), reason, session.driver_version, session.simulated, broken)


def _slices(session: NvmlSession, parent: Any) -> list[Device]:
    current, _pending = session.ask("nvmlDeviceGetMigMode", parent, default=(0, 0))
    if not current:
        return []
    whole = describe(session, parent)
    found = []
    for index in range(session.call("nvmlDeviceGetMaxMigDeviceCount", parent)):
        try:
            handle = session.call("nvmlDeviceGetMigDeviceHandleByIndex", parent, index)
        except NvmlError as error:
            if error.kind is Kind.UNKNOWN_DEVICE:  # no slice in this place
                continue
            raise
        found.append(describe(session, handle, whole))
    if not found:
        # CUDA sees nothing of such a GPU, and it must not be taken for a whole one.
        cure = "make slices (nvidia-smi mig -cgi ... -C) or turn it off (nvidia-smi -mig 0)"
        raise NvmlError(f"MIG is on without a slice: {cure}", kind=Kind.UNSUPPORTED)
    return found


def describe(session: NvmlSession, handle: Any, parent: Device | None = None) -> Device:
    """The device behind an NVML handle, a MIG slice with its parent's board; raises NvmlError."""
    ask = session.ask
    if parent is None and ask("nvmlDeviceIsMigDeviceHandle", handle, default=False):
        board = session.call("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
        parent = describe(session, board)
    if parent is None:
        pci = session.call("nvmlDeviceGetPciInfo", handle).busId
        bus = pci.decode() if isinstance(pci, bytes) else str(pci)
        major_minor = ask("nvmlDeviceGetCudaComputeCapability", handle, default=None)
        capability = None if major_minor is None else ".".join(map(str, major_minor))
        limit_mw = ask("nvmlDeviceGetEnforcedPowerLimit", handle, default=None)
        clock_mhz = ask("nvmlDeviceGetMaxClockInfo", handle, 1, default=None)
        limit_w = None if limit_mw is None else limit_mw / 1e3
        clock_hz = None if clock_mhz is None else clock_mhz * 1e6
    else:
        bus, capability = parent.pci_bus_id, parent.compute_capability
        limit_w, clock_hz = parent.power_limit_w, parent.sm_clock_max_hz
    memory = ask("nvmlDeviceGetMemoryInfo", handle, default=None)
    return Device(
        uuid=str(session.call("nvmlDeviceGetUUID", handle)),
        name=str(session.call("nvmlDeviceGetName", handle)),
        pci_bus_id=bus,
        memory_bytes=int(memory.total) if memory is not None else 0,
        driver_version=session.driver_version,
        compute_capability=capability,
        power_limit_w=limit_w,
        sm_clock_max_hz=clock_hz,
        parent_uuid=parent.uuid if parent else None,
        simulated=session.simulated,
    )
