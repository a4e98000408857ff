"""The operations of a model, each timed alone and as models run it, at a few sizes.

Weights come in turn, as many as a cache holds (``near``) or does not (``far``): one that is still
in a cache is multiplied up to four times as fast. What a training step keeps is kept here too:
writing results into memory that is not reused costs more than computing some of them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

from orchestrator.measure import Clock, timed

if TYPE_CHECKING:
    import torch

# A point of a round: name of its table, its two sizes, and seconds.
Point = tuple[str, float, float, float]

# A point is the faster of some blocks of calls. Where one call takes too long the point is left
# out, and so are larger ones: processors without instructions for half precision multiply in it a
# hundred times slower than in float32.
_BLOCKS, _BLOCK_S, _LONGEST_S = 2, 0.003, 0.02
_LONGEST_KEPT_S, _MOST_KEPT_S = 0.25, 0.5
_MOST_IN_TURN, _MOST_KEPT = 256, 48
_HEADS, _HEAD_DIM = 8, 64
# AdamW and the loss of a large vocabulary are measured up to such sizes.
_TENSORS = (1 << 10, 1 << 16, 1 << 20, 1 << 21, 1 << 22, 1 << 24)
_LOGITS = ((64, 1 << 11), (512, 1 << 13), (512, 1 << 15))


@dataclass(frozen=True)
class SizeScale:
    """Sizes of what is measured: widths that models have, and more weights than a cache holds.

    Attributes
    ----------
    widths : tuple of int
        Of square weights; the first is negligible.
    rows, spans : tuple of int
        Of products; new tokens and past ones of attention.
    most : int
        Rows times elements of the largest product.
    near_bytes, far_bytes, kept_bytes : int
        Weights read in turn, and results held at once.
    """

    widths: tuple[int, ...]
    rows: tuple[int, ...]
    spans: tuple[int, ...]
    most: int
    near_bytes: int
    far_bytes: int
    kept_bytes: int
    triad_bytes: tuple[int, ...]
    reading_bytes: tuple[int, ...]


CPU = SizeScale(
    widths=(32, 256, 768, 2048),
    rows=(1, 4, 16, 64, 256, 1024),
    spans=(16, 128, 512, 1024),
    most=1 << 30,
    near_bytes=6 << 20,
    far_bytes=1 << 26,
    kept_bytes=1 << 26,
    triad_bytes=tuple(3 << n for n in (15, 18, 21, 24, 26)),
    reading_bytes=tuple(1 << n for n in (20, 23, 25, 26, 28)),
)
CUDA = SizeScale(
    widths=(32, 1024, 4096, 8192),
    rows=(1, 8, 64, 512, 2048),
    spans=(16, 128, 1024, 4096),
    most=1 << 37,
    near_bytes=1 << 24,
    far_bytes=1 << 29,
    kept_bytes=1 << 30,
    triad_bytes=tuple(3 << n for n in (20, 24, 28)),
    reading_bytes=tuple(1 << n for n in (22, 26, 30)),
)


class Timer:
    """The least time of a call, in blocks long enough for the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def seconds(self, call: Callable[[], Any], longest_s: float | None = None) -> float | None:
        """Seconds of one call; None where it takes too long to be measured."""
        longest_s = _LONGEST_S if longest_s is None else longest_s
        # The first call also finds memory and code: it may take longer, but not that much.
        if self._block(call, 1) > 10 * longest_s:
            return None
        once_s = self._block(call, 1)
        if once_s > longest_s:
            return None
        count = max(1, round(_BLOCK_S / max(once_s, 1e-7)))
        if count == 1:  # the call just made was a whole block
            return min(once_s, self._block(call, count))
        return min(self._block(call, count) for _ in range(_BLOCKS))

    def least_s(self, call: Callable[[], Any]) -> float:
        """Seconds of one call, however long it takes."""
        seconds = self.seconds(call, math.inf)
        assert seconds is not None
        return seconds

    def kept(
        self,
        ahead: Callable[[int], Any],
        back: Callable[[int, Any], Any],
        count: int,
        *,
        between: Callable[[], object] = lambda: None,
        longest_s: float | None = None,
    ) -> tuple[float, float] | None:
        """Seconds of one call ahead, all results kept, and of one back, its results kept too.

        Whatever is kept is let go ``between`` one time and the next. Fewer than ``count`` where
        they would take long; None where one of them does.
        """
        ahead_s, back_s = self._chain(ahead, back, 1)
        between()
        once_s = ahead_s + back_s
        if once_s > (_LONGEST_KEPT_S if longest_s is None else longest_s):
            return None
        count = min(count, max(1, int(_MOST_KEPT_S / once_s)))
        found = []
        for _ in range(1 + _BLOCKS):
            found.append(self._chain(ahead, back, count))
            between()
        return min(first for first, _ in found), min(second for _, second in found)

    def _chain(
        self, ahead: Callable[[int], Any], back: Callable[[int, Any], Any], count: int
    ) -> tuple[float, float]:
        with timed(self._clock) as forth:
            results = [ahead(index) for index in range(count)]
        with timed(self._clock) as again:
            gradients = [back(index, results.pop()) for index in reversed(range(count))]
        del gradients
        return forth.seconds / count, again.seconds / count

    def _block(self, call: Callable[[], Any], count: int) -> float:
        with timed(self._clock) as block:
            for _ in range(count):
                call()
        return block.seconds / count


@dataclass(frozen=True)
class Operations:
    """Measures on one device."""

    device: torch.device
    scale: SizeScale
    timer: Timer

    def inference(self, name: str) -> Iterator[Point]:
        """Products and attention of an inference in the dtype ``name``."""
        import torch

        with torch.inference_mode():
            for place, size in (("near", self.scale.near_bytes), ("far", self.scale.far_bytes)):
                yield from self._products(name, f"product.{place}.{name}", size)
            for groups in (1, 4):
                yield from self._attention(name, groups)
            yield from self._append(name)

    def training(self, name: str) -> Iterator[Point]:
        """The same and the loss, with what a step keeps, ahead and back; and AdamW."""
        import torch

        with torch.enable_grad():
            yield from self._trained_products(name)
            for groups in (1, 4):
                yield from self._trained_attention(name, groups)
            yield from self._loss(name)
        for elements in _TENSORS:
            seconds = self._optimizer(name, elements)
            if seconds is None:
                break
            yield f"optimizer.forward.{name}", elements, 1, seconds

    def integer_products(self) -> Iterator[Point]:
        """Products of 8-bit integers, where torch has them for this device."""
        import torch

        width = self.scale.widths[-2]
        make = partial(torch.randint, -127, 127, dtype=torch.int8, device=self.device)
        weight = make((width, width))
        for rows in self.scale.rows:
            try:
                seconds = self.timer.seconds(partial(torch._int_mm, make((rows, width)), weight))
            except RuntimeError:
                continue  # CUDA wants more rows
            if seconds is None:
                break
            yield "product.far.int8", width * width, rows, seconds

    def triad(self, size: int) -> float:
        """Seconds a byte of b + s * c into new memory, as eager code does it.

        Writing to what is in a cache already would be faster.
        """
        import torch

        count = size // 12
        b, c = torch.rand(count, device=self.device), torch.rand(count, device=self.device)
        return self.timer.least_s(lambda: torch.add(b, c, alpha=1.5)) / (12 * count)

    def reading(self, size: int) -> float:
        """Seconds a byte of so many weights in turn, by products with one row."""
        import torch
        from torch.nn.functional import linear

        width = 1024
        rows = min(size // (4 * width), 4 * width if self.device.type == "cuda" else width)
        first = torch.rand(rows, width, device=self.device)
        turn = _in_turn(first, size)
        vector = torch.rand(1, width, device=self.device)
        return float(self.timer.least_s(lambda: linear(vector, next(turn))) / first.nbytes)

    def _products(self, name: str, table: str, size: int) -> Iterator[Point]:
        from torch.nn.functional import linear

        for width in self.scale.widths:
            first = self._random(name, width, width)
            turn = _in_turn(first, size, _MOST_IN_TURN)
            for rows in self._rows(width):
                x = self._random(name, 1, rows, width)

                def product(x: torch.Tensor = x, turn: Iterator[Any] = turn) -> Any:
                    return linear(x, next(turn))

                seconds = self.timer.seconds(product)
                if seconds is None:
                    break
                yield table, width * width, rows, seconds

    def _trained_products(self, name: str) -> Iterator[Point]:
        for width in self.scale.widths:
            for rows in self._rows(width)[1::2]:
                found = self._trained_product(name, width, rows)
                if found is None:
                    break
                yield f"product.forward.{name}", width * width, rows, found[0]
                yield f"product.backward.{name}", width * width, rows, found[1]

    def _trained_product(self, name: str, width: int, rows: int) -> tuple[float, float] | None:
        import torch
        from torch.nn.functional import linear

        x = self._random(name, 1, rows, width).requires_grad_()
        above = self._random(name, 1, rows, width)
        count = self._count(above.nbytes + width * width * above.itemsize)
        weights = [self._random(name, width, width).requires_grad_() for _ in range(count)]
        return self.timer.kept(
            lambda index: linear(x, weights[index]),
            # The input's gradient is soon let go, the weight's is kept.
            lambda index, y: torch.autograd.grad(y, (x, weights[index]), above)[1],
            count,
        )

    def _attention(self, name: str, groups: int) -> Iterator[Point]:
        from torch.nn.functional import scaled_dot_product_attention as attend

        for span in self.scale.spans:
            query, key, value = self._heads(name, span, span, groups)
            seconds = self.timer.seconds(
                partial(attend, query, key, value, is_causal=True, enable_gqa=groups > 1)
            )
            if seconds is None:
                break
            yield f"attention.inference.{name}", span, groups, seconds / _flops(span)
        for past in (1, *self.scale.spans):
            query, key, value = self._heads(name, 1, past, groups)
            seconds = self.timer.seconds(partial(attend, query, key, value, enable_gqa=groups > 1))
            if seconds is not None:
                flops = 4 * past * _HEADS * _HEAD_DIM
                yield f"attention_step.inference.{name}", flops, groups, seconds

    def _append(self, name: str) -> Iterator[Point]:
        """A cache that grows: all of it goes into new memory, one layer's after the other."""
        import torch

        for span in self.scale.spans:
            first = self._random(name, 1, _HEADS, span, _HEAD_DIM)
            turn = _in_turn(first, self.scale.far_bytes, _MOST_IN_TURN)
            token = self._random(name, 1, 1, _HEADS, _HEAD_DIM).transpose(1, 2)

            def grow(turn: Iterator[Any] = turn, token: torch.Tensor = token) -> Any:
                return torch.cat((next(turn), token), dim=-2)

            seconds = self.timer.seconds(grow)
            if seconds is not None:
                yield f"append.inference.{name}", 2 * first.nbytes, 1, seconds

    def _trained_attention(self, name: str, groups: int) -> Iterator[Point]:
        for span in self.scale.spans:
            found = self._attended(name, groups, span)
            if found is None:
                break
            yield f"attention.forward.{name}", span, groups, found[0] / _flops(span)
            # Five products where there were two.
            yield f"attention.backward.{name}", span, groups, found[1] / (2.5 * _flops(span))

    def _attended(self, name: str, groups: int, span: int) -> tuple[float, float] | None:
        import torch
        from torch.nn.functional import scaled_dot_product_attention as attend

        inputs = [t.detach().requires_grad_() for t in self._heads(name, span, span, groups)]
        query, key, value = inputs
        above = self._heads(name, span, span, 1)[0]
        return self.timer.kept(
            lambda _: attend(query, key, value, is_causal=True, enable_gqa=groups > 1),
            lambda _, y: torch.autograd.grad(y, inputs, above),
            min(8, self._count(4 * above.nbytes)),
        )

    def _loss(self, name: str) -> Iterator[Point]:
        for rows, vocabulary in _LOGITS:
            found = self._lost(name, rows, vocabulary)
            if found is None:
                break
            yield f"loss.forward.{name}", rows * vocabulary, 1, found[0]
            yield f"loss.backward.{name}", rows * vocabulary, 1, found[1]

    def _lost(self, name: str, rows: int, vocabulary: int) -> tuple[float, float] | None:
        import torch
        from transformers.loss.loss_utils import ForCausalLMLoss

        logits = self._random(name, 1, rows, vocabulary).requires_grad_()
        labels = torch.zeros(1, rows, dtype=torch.long, device=self.device)
        return self.timer.kept(
            lambda _: ForCausalLMLoss(logits, labels, vocabulary),
            lambda _, loss: torch.autograd.grad(loss, logits),
            2,
        )

    def _optimizer(self, name: str, elements: int) -> float | None:
        """Seconds that one tensor takes; None where that is long."""
        import torch

        count = min(max(2, (1 << 23) // elements), _MOST_KEPT)
        tensors = [self._random(name, elements).requires_grad_() for _ in range(count)]
        for tensor in tensors:
            tensor.grad = torch.rand_like(tensor)
        optimizer = torch.optim.AdamW(tensors)
        found = self.timer.kept(lambda _: optimizer.step(), lambda *_: None, 1, longest_s=count)
        return None if found is None else found[0] / count

    def _rows(self, width: int) -> Sequence[int]:
        return [rows for rows in self.scale.rows if rows * width * width <= self.scale.most]

    def _count(self, kept_bytes: int) -> int:
        return min(max(2, self.scale.kept_bytes // kept_bytes), _MOST_KEPT)

    def _heads(self, name: str, new: int, seen: int, groups: int) -> list[torch.Tensor]:
        """Query, key and value, laid out as projections leave them."""
        shapes = ((new, _HEADS), (seen, _HEADS // groups), (seen, _HEADS // groups))
        return [self._random(name, 1, *shape, _HEAD_DIM).transpose(1, 2) for shape in shapes]

    def _random(self, name: str, *shape: int) -> torch.Tensor:
        import torch

        return torch.rand(*shape, device=self.device).to(getattr(torch, name))


def _in_turn(first: torch.Tensor, size: int, most: int = sys.maxsize) -> Iterator[torch.Tensor]:
    """``first`` and copies of it for ever, as many as ``size`` bytes hold."""
    count = min(max(1, size // first.nbytes), most)
    return cycle([first, *(first.clone() for _ in range(count - 1))])


def _flops(span: int) -> float:
    """Of causal attention over ``span`` tokens."""
    return 4 * (span * (span + 1) // 2) * _HEADS * _HEAD_DIM
