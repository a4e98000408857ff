"""Products of half-precision numbers on a CPU without instructions for them, by way of float32.

torch multiplies bfloat16 and float16 on such a CPU in loops, at a hundredth of float32's rate. Here
both factors are converted, multiplied in float32 and the result rounded once, at nearly float32's
own rate; what is converted is held for one product. Fused attention is computed in float32 whole:
its probabilities are not rounded between its two products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.host.cpu import emulates_half_precision
from orchestrator.measure import Infeasible

if TYPE_CHECKING:
    import torch

# As the device does it, through float32, and that only where the device would do it in loops.
PRODUCTS = ("native", "float32", "auto")
_HALF = ("bfloat16", "float16")
# torch's operators for the CPU that multiply, and which of their results are as narrow as what went
# in. All others, norms and softmax and updates, have vector code for half precision everywhere.
_NARROW_RESULTS = {
    "mm": (0,),
    "addmm": (0,),
    "bmm": (0,),
    "baddbmm": (0,),
    "_scaled_dot_product_flash_attention_for_cpu": (0,),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (0, 1, 2),
}


def products_in(asked: str, dtype: str, device_kind: str) -> str:
    """``native`` or ``float32``: what ``asked``, one of ``PRODUCTS``, comes to here.

    Parameters
    ----------
    dtype : str
        What the model computes in.
    device_kind : str
        ``cpu`` or ``cuda``.
    """
    if dtype not in _HALF or device_kind != "cpu":
        return "native"
    if asked == "auto":
        return "float32" if emulates_half_precision() else "native"
    return asked


@dataclass
class Converted:
    """How many products went through float32 so far."""

    products: int = 0


@contextmanager
def through_float32() -> Iterator[Converted]:
    """In this process, until it is left: eager, compiled, under autocast, ahead and back.

    Raises
    ------
    Infeasible
        Torch is too old to let its own products be called from what stands in for them.
    """
    import warnings

    import torch

    if not hasattr(torch.library, "get_kernel"):
        raise Infeasible(
            f"torch {torch.__version__} cannot multiply half precision in float32",
            where="task.products",
            fix="Install a newer one, or say native",
        )
    converted = Converted()
    with torch.library._scoped_library("aten", "IMPL") as library:
        with warnings.catch_warnings():
            # It is meant to override what torch registered.
            warnings.filterwarnings("ignore", message=".*overrid", category=UserWarning)
            for name, narrow in _NARROW_RESULTS.items():
                packet = getattr(torch.ops.aten, name)
                plain = torch.library.get_kernel(packet.default, "CPU")
                for overload in {"default", "out"}.intersection(packet.overloads()):
                    operator = getattr(packet, overload)
                    kernel = torch.library.get_kernel(operator, "CPU")
                    stand_in = _widening(kernel, plain, narrow, converted)
                    library.impl(operator, stand_in, "CPU", with_keyset=True)
        yield converted


def _widening(
    kernel: Any, plain: Any, narrow: tuple[int, ...], converted: Converted
) -> Callable[..., Any]:
    """``kernel``, but ``plain`` on converted tensors where any of them is in half precision."""
    import torch

    half = tuple(getattr(torch, name) for name in _HALF)

    def is_half(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.dtype in half

    def widened(value: Any) -> Any:
        return value.float() if is_half(value) else value

    def call(keyset: Any, *values: Any, **named: Any) -> Any:
        dtype = next((value.dtype for value in values if is_half(value)), None)
        if dtype is None:
            return kernel.call_boxed(keyset, *values, **named)
        converted.products += 1
        out: torch.Tensor | None = named.pop("out", None)
        wide = {name: widened(value) for name, value in named.items()}
        found = plain.call_boxed(keyset, *map(widened, values), **wide)
        if out is not None:
            return out.resize_(found.shape).copy_(found)
        if isinstance(found, torch.Tensor):
            return found.to(dtype)
        return tuple(
            result.to(dtype) if place in narrow else result for place, result in enumerate(found)
        )

    return call
