"""What the reference precision says of a text, kept so that it is computed once.

The reference is the same weights in float32. A window of its logits is held as 16-bit codes
between each row's lowest and highest value: two bytes a logit instead of four. For a spread of 40
one step is 0.0006; the divergence that this rounding causes is of the order of step squared / 24,
1.5e-8 nats a token, four orders below what rounding weights to bfloat16 causes. The reference's
own choice (top 1) is stored exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.digest import digest_json
from orchestrator.measure import InputError, Recorder

if TYPE_CHECKING:
    import torch

REFERENCE_VERSION = 1
_STEPS = 65535
# Some models give padded vocabulary entries minus infinity; this far down nothing has any weight.
_LOWEST = 200.0


@dataclass(frozen=True)
class Window:
    """The reference's view of one window of tokens.

    Attributes
    ----------
    logits : Tensor
        (tokens, vocabulary), float32, to within half a code step.
    top1 : Tensor
        (tokens,), int64: the reference's own choice.
    """

    logits: torch.Tensor
    top1: torch.Tensor


class Reference:
    """Reference logits of a sequence of windows, one file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def window(self, index: int, device: torch.device) -> Window:
        """Decode window ``index`` onto ``device``."""
        import torch
        from safetensors.torch import load_file

        stored = load_file(self._directory / f"{index:06d}.safetensors")
        codes = stored["codes"].to(device).to(torch.float32)
        scale, low = stored["scale"].to(device), stored["low"].to(device)
        return Window(codes * scale[:, None] + low[:, None], stored["top1"].to(device).long())


def reference_for(
    weights_digest: str,
    tokens_digest: str,
    windows: Sequence[torch.Tensor],
    logits_of: Callable[[], Callable[[torch.Tensor], torch.Tensor]],
    recorder: Recorder,
) -> Reference:
    """The reference for these weights and tokens, computed if it is not in the cache.

    That happens in a phase ``reference``.

    Parameters
    ----------
    windows : sequence of Tensor
        Token ids, (tokens,) each; the windows' lengths are part of the key.
    logits_of : callable
        Called only on a miss: loads the reference model and gives a function from ids, (tokens,),
        to logits, (tokens, vocabulary), float32.
    """
    key = digest_json(
        {
            "version": REFERENCE_VERSION,
            "weights": weights_digest,
            "tokens": tokens_digest,
            "windows": [len(window) for window in windows],
            "dtype": "float32",
        }
    )

    def build(directory: Path) -> None:
        directory.mkdir()
        compute = logits_of()
        for index, ids in enumerate(windows):
            _write(directory / f"{index:06d}.safetensors", compute(ids))

    making = recorder.phase("reference", measured=False)
    return Reference(publish(cache_root() / "references" / key[:32], build, making=making))


def _write(file: Path, logits: torch.Tensor) -> None:
    import torch
    from safetensors.torch import save_file

    logits = logits.float()
    high = logits.max(dim=-1).values
    if not torch.isfinite(high).all():
        raise InputError(
            "the float32 model itself gives logits that are not finite", where="quality reference"
        )
    clipped = torch.maximum(logits, (high - _LOWEST)[:, None])
    low = clipped.min(dim=-1).values
    scale = ((high - low) / _STEPS).clamp(min=torch.finfo(torch.float32).tiny)
    codes = ((clipped - low[:, None]) / scale[:, None]).round_()
    save_file(
        {
            "codes": codes.to(torch.int32).to(torch.uint16).cpu().contiguous(),
            "scale": scale.cpu().contiguous(),
            "low": low.cpu().contiguous(),
            "top1": logits.argmax(dim=-1).to(torch.int32).cpu().contiguous(),
        },
        file,
    )
