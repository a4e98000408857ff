"""What this device reaches at most, and which of its limits an operator works against.

A hint, not a proof: bytes are those of an operator's tensor inputs, read once each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.engines.transformers import dtype_name
from orchestrator.measure import Clock
from orchestrator.tasks.ceilings.timed_operations import Timer
from orchestrator.tasks.profile.attribution import Operator

if TYPE_CHECKING:
    import torch

_SIDE = {"cpu": 512, "cuda": 4096}
_COPY_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class Ceiling:
    """The best of a few matrix products and copies on this device.

    Attributes
    ----------
    flops_per_s : float
        Square product in ``dtype``.
    bytes_per_s : float
        A copy's bytes read and written.
    """

    dtype: str
    flops_per_s: float
    bytes_per_s: float

    def bound(self, operator: Operator) -> str | None:
        """``compute`` or ``memory``; None for an operator whose FLOPs or bytes are not known."""
        if not operator.flops or not operator.read_bytes:
            return None
        compute_s = operator.flops / self.flops_per_s
        return "compute" if compute_s > operator.read_bytes / self.bytes_per_s else "memory"


def measure_ceiling(device: torch.device, dtype: torch.dtype, clock: Clock) -> Ceiling:
    """Measure both ceilings; takes a fraction of a second."""
    import torch

    side = _SIDE[device.type]
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    timer = Timer(clock)
    product_s = timer.least_s(lambda: left @ right)
    copy_s = timer.least_s(lambda: target.copy_(source))
    return Ceiling(dtype_name(dtype), 2.0 * side**3 / product_s, 2.0 * source.nbytes / copy_s)
