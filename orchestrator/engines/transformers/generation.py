"""Greedy generation of a fixed length, timed token by token.

::

    prefill: tokens in ──> logits of the last position ──> argmax, device synchronised   ttft_s
    decode:  mark ─ step ─ mark ─ step ─ ... ─ mark        n - 1 steps give n - 1 intervals

The first token comes from the prefill, so ``new_tokens`` of n means n - 1 decode steps. Nothing is
emitted, printed or copied to the host between two marks.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.measure import Clock, timed
from orchestrator.measure.sampling import PhaseMaker, no_phase

if TYPE_CHECKING:
    import torch

_RENAMED = ("mems", "past_buckets_states")


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


class Past:
    """What a model remembers of the tokens it was fed, under the names that it takes it by.

    Attributes
    ----------
    kept : dict
        Keyword arguments of the next call, mostly ``past_key_values``; empty where the model makes
        its own in the first one.
    """

    def __init__(self, cache: Any, *, follows: bool) -> None:
        self.kept: dict[str, Any] = cache if isinstance(cache, dict) else {"past_key_values": cache}
        self._follows = follows or not self.kept
        self._ids: torch.Tensor | None = None

    def all_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Every id so far, ``ids`` the last of them: (batch, tokens)."""
        import torch

        self._ids = ids if self._ids is None else torch.cat([self._ids, ids], dim=-1)
        return self._ids

    def follow(self, output: Any) -> None:
        """Take over what a call gave back, where the model may give another object each time."""
        if self._follows and (kept := _kept_of(output)):
            self.kept = kept

    @property
    def tokens(self) -> int | None:
        """How many tokens it says that it holds; None where it does not count them."""
        for cache in self.kept.values():
            count = getattr(cache, "get_seq_length", None)
            if count is None:
                continue
            try:
                return int(count())
            except (ValueError, IndexError, TypeError, AttributeError, NotImplementedError):
                return None  # a state without any attention has no length
        return None

    @property
    def bytes(self) -> int:
        """Of the keys, values and states it consists of; not of what counts them."""
        return sum(
            tensor.numel() * tensor.element_size()
            for tensor in _tensors_in(self.kept)
            if tensor.is_floating_point()
        )


class GreedyGenerator:
    """Generates with a causal language model and a key-value cache of its own each time.

    Parameters
    ----------
    forward : callable
        The model, compiled or not; called with ``input_ids`` and what it remembers.
    new_cache : callable
        Makes an empty cache, which the model takes as ``past_key_values``; or a dict of arguments,
        empty where the model makes its own.
    prefill_options : dict
        More arguments for the prefill, ``logits_to_keep=1`` where the model knows it: a server
        needs no logits of the prompt.
    options : dict
        More arguments for every call.
    forward_token : callable, optional
        Called in place of ``forward`` for a single token: the decode step, compiled by itself.
    prepare_inputs : callable, optional
        Makes the arguments of a call from all ids so far, where the model has a way of its own
        (``prepare_inputs_for_generation``).
    token_sleep_s : float
        Slept inside every token interval, the device idle: an injected slowdown.

    Attributes
    ----------
    held_tokens : int or None
        Tokens in the cache after the last sequence; None where it does not count them.
    held_bytes : int
        Its size then.
    prefill_logits : Tensor or None
        That the last sequence's prefill gave, (batch, vocabulary).
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        clock: Clock,
        new_cache: Callable[[], Any],
        *,
        prefill_options: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        forward_token: Callable[..., Any] | None = None,
        prepare_inputs: Callable[..., dict[str, Any]] | None = None,
        token_sleep_s: float = 0.0,
    ) -> None:
        self._forward = forward
        self._clock = clock
        self._new_cache = new_cache
        self._prefill_options = prefill_options or {}
        self._options = options or {}
        self._forward_token = forward if forward_token is None else forward_token
        self._prepare_inputs = prepare_inputs
        self._token_sleep_s = token_sleep_s
        self._finite: torch.Tensor | None = None
        self.prefill_logits: torch.Tensor | None = None
        self.held_tokens: int | None = None
        self.held_bytes = 0

    @property
    def finite(self) -> bool:
        """Whether the logits of every prefill and of every last decode step were numbers."""
        return self._finite is None or bool(self._finite)

    def begin(self, prompt: torch.Tensor, depth: int = 0) -> tuple[Past, torch.Tensor]:
        """Run the prompt, (batch, length); gives what is kept of it and (batch, vocabulary).

        Its first ``depth`` ids are fed before the others.
        """
        past = self._filled(prompt[:, :depth])
        return past, self._call(prompt[:, depth:], past, first=not depth)

    def step(self, ids: torch.Tensor, past: Past) -> torch.Tensor:
        """Feed one more token, (batch, 1); gives the logits, (batch, vocabulary)."""
        return self._call(ids, past, first=False)

    def prefill(self, prompt: torch.Tensor) -> tuple[Past, torch.Tensor]:
        """Run the prompt, (batch, length); gives what is kept of it and the next ids."""
        past, logits = self.begin(prompt)
        return past, logits.argmax(-1, keepdim=True)

    def sequence(
        self,
        prompt: torch.Tensor,
        new_tokens: int,
        phase: PhaseMaker = no_phase,
        depth: int = 0,
    ) -> tuple[SequenceTiming, list[torch.Tensor]]:
        """Generate ``new_tokens`` for each row of ``prompt``, (batch, length).

        Parameters
        ----------
        phase : callable
            Gives a context manager for ``prefill`` and for ``decode``; its edges lie outside what
            is timed.
        depth : int
            So many of the prompt's ids are fed before anything is timed.

        Returns
        -------
        SequenceTiming, list of Tensor
            The tensors are the ids of each step, (batch, 1), still on the device.
        """
        clock = self._clock
        past = self._filled(prompt[:, :depth])
        with phase("prefill"), timed(clock) as span:
            logits = self._call(prompt[:, depth:], past, first=not depth)
            token = logits.argmax(-1, keepdim=True)
        self._note(logits)
        self.prefill_logits = logits
        tokens = [token]
        intervals: list[float] = []
        if new_tokens > 1:
            with phase("decode"):
                clock.sync()
                marks = [clock.mark()]
                for _ in range(new_tokens - 1):
                    logits = self._call(token, past, first=False)
                    token = logits.argmax(-1, keepdim=True)
                    tokens.append(token)
                    if self._token_sleep_s:
                        clock.sync()  # else a busy device would hide the host's sleep
                        time.sleep(self._token_sleep_s)
                    marks.append(clock.mark())
                intervals = clock.seconds_between(marks)
            self._note(logits)
        self.held_tokens, self.held_bytes = past.tokens, past.bytes
        return SequenceTiming(span.seconds, tuple(intervals)), tokens

    def _filled(self, ids: torch.Tensor) -> Past:
        past = Past(self._new_cache(), follows=self._prepare_inputs is not None)
        if ids.shape[1]:
            self._call(ids, past, first=True)
        return past

    def _call(self, ids: torch.Tensor, past: Past, *, first: bool) -> torch.Tensor:
        if self._prepare_inputs is None:
            inputs = {"input_ids": ids, **past.kept}
        else:
            inputs = self._prepare_inputs(
                past.all_ids(ids),
                next_sequence_length=None if first else ids.shape[1],
                is_first_iteration=first,
                **past.kept,
                **self._options,
            )
        several = first or ids.shape[1] > 1
        more = {**self._options, **self._prefill_options} if several else self._options
        forward = self._forward if several else self._forward_token
        output = forward(**{**inputs, **more})
        past.follow(output)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _note(self, logits: torch.Tensor) -> None:
        """Whether they are numbers, without waiting for the device.

        Some models give the padding of their vocabulary minus infinity, so it is the largest of a
        row that counts; of a row with anything that is no number, that is what comes out.
        """
        finite = logits.amax(-1).isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite


def generator_for(
    model: Any,
    clock: Clock,
    *,
    forward: Callable[..., Any] | None = None,
    cache_tokens: int | None = None,
    token_sleep_s: float = 0.0,
) -> GreedyGenerator:
    """A generator of a transformers model, which ``forward`` is where it is compiled.

    With ``cache_tokens`` its cache is static and has room for so many tokens, and ``forward`` is
    for the decode step only: prompts have other shapes.

    The model is asked for all that its own ``generate`` would ask it for: the cache or state, the
    name under which it takes it, and how the inputs of a step are made.
    """
    from transformers.generation import GenerationMixin

    accepts = inspect.signature(model.forward).parameters
    own = getattr(type(model), "prepare_inputs_for_generation", None)
    usual = own is None or own is GenerationMixin.prepare_inputs_for_generation
    static = cache_tokens is not None
    compiled = model if forward is None else forward
    return GreedyGenerator(
        model if static else compiled,
        clock,
        cache_maker(model, cache_tokens),
        prefill_options={"logits_to_keep": 1} if "logits_to_keep" in accepts else {},
        # A configuration saved after training may say that nothing is to be cached.
        options={"use_cache": True} if "use_cache" in accepts else {},
        forward_token=compiled,
        # What the usual way adds is there for padding, of which there is none here, and costs time
        # in every step.
        prepare_inputs=None if usual else model.prepare_inputs_for_generation,
        token_sleep_s=token_sleep_s,
    )


def cache_maker(model: Any, tokens: int | None = None) -> Callable[[], dict[str, Any]]:
    """Makes the empty cache that ``model`` would generate with, under the name it takes it by.

    Empty where the model makes its own in the first call. With ``tokens`` it is a static one with
    room for so many, and always the same, emptied: a graph is compiled for the memory of one cache,
    and another one would be compiled again.
    """
    from transformers import DynamicCache
    from transformers.generation.configuration_utils import GenerationMode

    prepare = getattr(model, "_prepare_cache_for_generation", None)
    settings = copy.deepcopy(getattr(model, "generation_config", None))
    if prepare is None or settings is None:  # code of the model's own, without transformers' mixin
        return lambda: {"past_key_values": DynamicCache(config=model.config)}
    settings.use_cache, settings.max_cache_len = True, None
    settings.num_beams = settings.num_return_sequences = 1
    settings.cache_implementation = None if tokens is None else "static"
    kept: dict[str, Any] = {}

    def make() -> dict[str, Any]:
        if tokens is None:
            kept.clear()
        for cache in kept.values():
            cache.reset()
        if not kept:
            prepare(settings, kept, GenerationMode.GREEDY_SEARCH, 1, tokens or 0)
        return dict(kept)

    return make


def _kept_of(output: Any) -> dict[str, Any]:
    from transformers.generation.utils import ALL_CACHE_NAMES

    for name in ALL_CACHE_NAMES:
        if (kept := getattr(output, name, None)) is not None:
            # As `generate` hands back what these give under names of their own.
            return {"past_key_values" if name in _RENAMED else name: kept}
    return {}


def _tensors_in(found: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Every tensor inside dicts, sequences and caches, each once."""
    import torch

    seen = set() if seen is None else seen
    if id(found) in seen:
        return
    seen.add(id(found))
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from _tensors_in(value, seen)
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from _tensors_in(value, seen)
    elif hasattr(found, "__dict__") and "ache" in _family(found):
        yield from _tensors_in(vars(found), seen)


def _family(found: Any) -> str:
    return " ".join(kind.__name__ for kind in type(found).__mro__)
