"""One training step, each of its phases timed by itself.

::

    micro-batch: forward | backward      as often as gradients are accumulated
    optimizer                            AdamW's update, where asked for
    (gradients are let go, untimed)

The device is synchronised at both edges of each phase: the time of a backward pass is never the
rest of something else. A step's time is the sum of its phases'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.engines.transformers import dtype_name
from orchestrator.measure import Clock, timed
from orchestrator.measure.sampling import no_phase

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class StepTiming:
    """Seconds of one step; ``optimizer_s`` is None without an optimizer."""

    forward_s: float
    backward_s: float
    optimizer_s: float | None

    @property
    def step_s(self) -> float:
        """All phases."""
        return self.forward_s + self.backward_s + (self.optimizer_s or 0.0)


class TrainingStep:
    """Runs steps on the same batch of ids, which are their own labels.

    Parameters
    ----------
    model : PreTrainedModel
        Owns the parameters, in training mode.
    forward : callable
        The model, compiled or not.
    micro_batches : sequence of Tensor
        Token ids, (batch, length) each; their gradients are accumulated.
    optimizer : torch.optim.Optimizer or None
    autocast : torch.dtype or None
        Type that autocast computes in, forward and loss; None: no autocast.

    Attributes
    ----------
    first : StepTiming or None
        Of the very first step.
    losses : list of Tensor
        Mean loss of each step, still on the device.
    seen : dict of str to str
        What was found to be in force in the last step: autocast, dtypes of logits, loss, gradients.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        forward: Callable[..., Any],
        micro_batches: tuple[torch.Tensor, ...],
        clock: Clock,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._model = model
        self._forward = forward
        self._micro_batches = micro_batches
        self._clock = clock
        self._optimizer = optimizer
        self._autocast = autocast
        self.first: StepTiming | None = None
        self.losses: list[torch.Tensor] = []
        self.seen: dict[str, str] = {}

    def run(self, phase: Callable[[str], Any] = no_phase) -> StepTiming:
        """One step.

        Parameters
        ----------
        phase : callable
            Gives a context manager for ``forward``, ``backward`` and ``optimizer``; its edges lie
            outside what is timed.
        """
        forward_s = backward_s = 0.0
        optimizer_s: float | None = None
        losses = []
        for ids in self._micro_batches:
            with phase("forward"), timed(self._clock) as span:
                loss, found = self._loss(ids)
            forward_s += span.seconds
            losses.append(loss.detach())
            with phase("backward"), timed(self._clock) as span:
                loss.backward()
            backward_s += span.seconds
        if self._optimizer is not None:
            with phase("optimizer"), timed(self._clock) as span:
                self._optimizer.step()
            optimizer_s = span.seconds
        self.seen = {**found, "gradients": self._gradient_dtypes()}
        self._model.zero_grad(set_to_none=True)
        self.losses.append(sum(losses[1:], losses[0]))
        timing = StepTiming(forward_s, backward_s, optimizer_s)
        self.first = self.first or timing
        return timing

    def _loss(self, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, str]]:
        import torch

        kind = ids.device.type
        region = torch.autocast(kind, self._autocast) if self._autocast else nullcontext()
        with region:
            active = torch.is_autocast_enabled(kind)
            autocast = dtype_name(torch.get_autocast_dtype(kind)) if active else "none"
            output = self._forward(input_ids=ids, labels=ids, use_cache=False)
            loss = output.loss / len(self._micro_batches)
        found = {
            "autocast": autocast,
            "logits": dtype_name(output.logits.dtype),
            "loss": dtype_name(loss.dtype),
        }
        return loss, found

    def _gradient_dtypes(self) -> str:
        kinds = Counter(
            "none" if p.grad is None else dtype_name(p.grad.dtype)
            for p in self._model.parameters()
            if p.requires_grad
        )
        return ", ".join(f"{kind} x {count}" for kind, count in sorted(kinds.items()))
