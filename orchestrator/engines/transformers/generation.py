"""Greedy generation of a fixed length, timed token by token.

::

    prefill: tokens in ──> logits of the last position ──> argmax, device synchronised   ttft_s
    decode:  mark ─ step ─ mark ─ step ─ ... ─ mark        n - 1 steps give n - 1 intervals

The first token comes from the prefill, so ``new_tokens`` of n means n - 1 decode steps. Nothing is
emitted, printed or copied to the host between two marks.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.measure import Clock, timed
from orchestrator.measure.sampling import PhaseMaker, no_phase

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SequenceTiming:
    """One batch of sequences: what was timed of it, seconds.

    Attributes
    ----------
    ttft_s : float
        The prefill.
    intervals_s : tuple of float
        Between consecutive output tokens: one less than there are tokens.
    """

    ttft_s: float
    intervals_s: tuple[float, ...]


class GreedyGenerator:
    """Generates with a causal language model and a key-value cache of its own each time.

    Parameters
    ----------
    forward : callable
        The model, compiled or not; called with ``input_ids`` and ``past_key_values``.
    new_cache : callable
        Makes an empty cache.
    prefill_options : dict
        More arguments for the prefill, ``logits_to_keep=1`` where the model knows it: a server
        needs no logits of the prompt.
    token_sleep_s : float
        Slept inside every token interval, the device idle: an injected slowdown.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        clock: Clock,
        new_cache: Callable[[], Any],
        *,
        prefill_options: dict[str, Any] | None = None,
        token_sleep_s: float = 0.0,
    ) -> None:
        self._forward = forward
        self._clock = clock
        self._new_cache = new_cache
        self._prefill_options = prefill_options or {}
        self._token_sleep_s = token_sleep_s

    def prefill(self, prompt: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Run the prompt, (batch, length); gives the filled cache and the next ids, (batch, 1)."""
        cache = self._new_cache()
        output = self._forward(input_ids=prompt, past_key_values=cache, **self._prefill_options)
        return cache, output.logits[:, -1].argmax(-1, keepdim=True)

    def sequence(
        self,
        prompt: torch.Tensor,
        new_tokens: int,
        phase: PhaseMaker = no_phase,
    ) -> tuple[SequenceTiming, list[torch.Tensor]]:
        """Generate ``new_tokens`` for each row of ``prompt``, (batch, length).

        Parameters
        ----------
        phase : callable
            Gives a context manager for ``prefill`` and for ``decode``; its edges lie outside what
            is timed.

        Returns
        -------
        SequenceTiming, list of Tensor
            The tensors are the ids of each step, (batch, 1), still on the device.
        """
        clock = self._clock
        with phase("prefill"), timed(clock) as span:
            cache, token = self.prefill(prompt)
        tokens = [token]
        intervals: list[float] = []
        if new_tokens > 1:
            with phase("decode"):
                clock.sync()
                marks = [clock.mark()]
                for _ in range(new_tokens - 1):
                    output = self._forward(input_ids=token, past_key_values=cache)
                    token = output.logits[:, -1].argmax(-1, keepdim=True)
                    tokens.append(token)
                    if self._token_sleep_s:
                        clock.sync()  # else a busy device would hide the host's sleep
                        time.sleep(self._token_sleep_s)
                    marks.append(clock.mark())
                intervals = clock.seconds_between(marks)
        return SequenceTiming(span.seconds, tuple(intervals)), tokens


def generator_for(
    model: Any,
    clock: Clock,
    *,
    forward: Callable[..., Any] | None = None,
    token_sleep_s: float = 0.0,
) -> GreedyGenerator:
    """A generator of a transformers model, which ``forward`` is where it is compiled."""
    from transformers import DynamicCache

    accepts = inspect.signature(model.forward).parameters
    return GreedyGenerator(
        model if forward is None else forward,
        clock,
        lambda: DynamicCache(config=model.config),
        prefill_options={"logits_to_keep": 1} if "logits_to_keep" in accepts else {},
        token_sleep_s=token_sleep_s,
    )
