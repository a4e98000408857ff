"""Proofs of behaviour: what was timed is a causal model whose cache holds what it was fed.

After sampling, once an attempt, on the callable and the batch that were timed::

    whole    0 1 2 ... n-1 n n+1        no cache: every position's logits
    other    0 1 2 ... n-1 n x          differs in the last token: nothing before it may move
    cached   0 1 2 ... n-1 | n | n+1    as it was timed: prefill, then one token after the other
                                        (the prefill in two pieces where it has a depth)
    alone    n+1                        a negative control: the last token without its context

The cache is one if the cached logits are ten times nearer to those of the whole sequence than the
control is: that holds for every format, for its rounding is in all of them. Where the control is
no further off than rounding, as with random weights in half precision, nothing can be told: such a
proof is *undecided*, says so, and fails nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.engines.proof import (
    CACHE_SHARE,
    FAILED,
    PROVEN,
    UNDECIDED,
    Finding,
    judge_cache,
    judge_finite,
)
from orchestrator.engines.transformers.model_types import EXPERT_COUNTS
from orchestrator.measure import Recorder

if TYPE_CHECKING:
    import torch

    from orchestrator.engines.transformers.generation import GreedyGenerator

# Relative error of logits that rounding explains, of a deep model: RMS over the vocabulary.
_ROUNDING = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 3e-2}
# LLM.int8() picks the columns it keeps in 16 bits from all tokens of a call together.
_INT8_ROUNDING = 0.1
# A router between two experts of nearly equal weight chooses by the last bit, and that by what else
# is computed in the same call.
_ROUTED_ROUNDING = 0.12
# What the forward passes over a prompt may take, seconds; and no fewer tokens than these.
_BUDGET_S = 0.12
_LEAST_TOKENS = 6
_READ_TOKENS = 16  # where a model only reads
_PASSES = 4  # over so many tokens: whole, other, alone, and the cached prefill
_MOST_AT_ONCE = 256  # tokens of a batch of them: all of their logits are kept
_BEFORE = 8  # positions before the last one that are compared
_MASKED = -1e30  # what models fill the padding of their vocabulary with is below


def rounding_of(quant: Mapping[str, Any], config: Any = None) -> float:
    """Relative error of logits that the format explains without any fault, of such a model."""
    found = _INT8_ROUNDING if quant["scheme"] == "int8" else _ROUNDING[str(quant["dtype"])]
    routed = found > _ROUNDING["float32"] and _is_mixture(config)
    return max(found, _ROUTED_ROUNDING) if routed else found


def _is_mixture(config: Any) -> bool:
    for name in EXPERT_COUNTS:
        try:
            count = getattr(config, name, 0)
        except Exception:  # of a type of its own, for what differs by layer
            return True
        if isinstance(count, int) and count > 1:
            return True
    return False


def prove(
    model: Any,
    generator: GreedyGenerator,
    prompt: torch.Tensor,
    recorder: Recorder,
    *,
    quant: Mapping[str, Any],
    new_tokens: int,
    prefill_s: float,
    depth: int = 0,
    fixed_shape: bool = False,
) -> None:
    """Prove what was timed, and record each proof; :class:`Mismatch` for one that fails.

    Parameters
    ----------
    model : PreTrainedModel
        Not compiled: it gives the logits that the timed ones are held against.
    generator : GreedyGenerator
        As it was timed.
    prompt : Tensor
        (batch, tokens), as timed. On a CPU as much of it is taken as costs a fraction of a second.
    prefill_s : float
        What its prefill took.
    depth : int
        Ids of the prompt that were in the cache before that.
    fixed_shape : bool
        Compiled: another length would be compiled anew, so all of the prompt is taken.
    """
    import torch

    states: dict[str, str] = {}

    def note(name: str, finding: Finding, asked: str) -> None:
        states[name] = finding.state
        recorder.fact("proofs", dict(states))
        finding.record(recorder, name, asked)

    note("finite logits", judge_finite(generator.finite), "numbers, of prefill and decode")
    fed = prompt.shape[1] + new_tokens - 1
    recorder.fact("cache_bytes", generator.held_bytes)
    try:
        steps = min(2, new_tokens - 1)
        length = prompt.shape[1]
        if not fixed_shape and prompt.device.type == "cpu":
            affordable = int(_BUDGET_S / _PASSES * (length - depth) / max(prefill_s, 1e-9))
            length = min(length, max(affordable, _LEAST_TOKENS))
        # As large a share of it as of what was timed.
        before = depth * length // prompt.shape[1]
        run = _Run(model, generator, prompt[:, :length], prompt[:, :1], steps, before)
        rounding = rounding_of(quant, model.config)
        if (held := _held(generator, fed, run.own_tokens)) is not None:
            note("cache length", held, f"the {fed} tokens fed")
        note("causal", run.causal(rounding), "a later token moves no earlier logits")
        note("cache", run.cache(rounding), f"error up to {CACHE_SHARE:g} of that without context")
    except torch.OutOfMemoryError:
        # What was timed fitted; the whole sequence's logits beside it do not.
        for name, asked in (("causal", "a later token moves no earlier logits"), ("cache", "")):
            if name not in states:
                note(name, Finding(UNDECIDED, "no memory left to prove it in"), asked)


def prove_causal(model: Any, ids: torch.Tensor, recorder: Recorder, rounding: float) -> None:
    """As in :func:`prove`, of a model that only reads ``ids``, (tokens,)."""
    whole = ids[None, :_READ_TOKENS].to(model.device)
    if whole.shape[1] < 2:
        return
    finding = causal(
        _whole_logits(model, whole, _BEFORE + 1),
        _whole_logits(model, _other_end(whole), _BEFORE + 1),
        rounding,
    )
    recorder.fact("proofs", {"causal": finding.state})
    finding.record(recorder, "causal", "a later token moves no earlier logits")


class _Run:
    """The logits that the proofs compare, each computed once."""

    def __init__(
        self,
        model: Any,
        generator: GreedyGenerator,
        prompt: torch.Tensor,
        more: torch.Tensor,
        steps: int,
        depth: int,
    ) -> None:
        import torch

        length = prompt.shape[1]
        # The tokens that follow are the prompt's own, so ordinary ones.
        following = torch.cat([prompt, more], dim=1)[:, : max(steps, 1)]
        if following.shape[1] < max(steps, 1):
            following = following.repeat(1, max(steps, 1))[:, : max(steps, 1)]
        whole = torch.cat([prompt, following], dim=1)
        self._tokens = whole.shape[1]
        self._last = self._tokens - length - steps
        last = self._tokens - 1 - self._last
        alone = whole[:, last : last + 1]
        rows = (whole, _other_end(whole), alone.expand_as(whole))
        # Reading the weights is what costs on a CPU, so all at once. What follows the control's
        # token moves nothing, or the model is not causal and fails for that.
        if whole.device.type == "cpu" and whole.numel() <= _MOST_AT_ONCE:
            all_logits = _whole_logits(model, torch.cat(rows), self._tokens)
            self._whole, self._other, control = all_logits.chunk(3)
            self._alone = control[:, 0]
        else:
            kept = max(_BEFORE, steps) + 2
            self._whole, self._other = (_whole_logits(model, ids, kept) for ids in rows[:2])
            self._alone = _whole_logits(model, alone, 1)[:, -1]
        past, logits = generator.begin(prompt, depth)
        # Some models put tokens of their own before every prompt.
        self.own_tokens = max(0, (past.tokens or 0) - length)
        # Position of each one's logits, counted from the end of the sequence.
        self._cached = {self._tokens - length: logits.float()}
        for index in range(steps):
            logits = generator.step(following[:, index : index + 1], past)
            self._cached[self._tokens - length - 1 - index] = logits.float()

    def causal(self, rounding: float) -> Finding:
        return causal(self._whole, self._other, rounding)

    def cache(self, rounding: float) -> Finding:
        errors = [
            _distance(logits, self._whole[:, -1 - back]) for back, logits in self._cached.items()
        ]
        reference = self._whole[:, -1 - self._last]
        return judge_cache(
            max(errors),
            _distance(self._alone, reference),
            _distance(self._alone, self._cached[self._last]),
            _spread(reference),
            rounding,
            tokens=self._tokens,
        )


def causal(whole: torch.Tensor, other: torch.Tensor, rounding: float) -> Finding:
    """Of logits, (batch, positions, vocabulary), of sequences that differ in the last token."""
    moved = _distance(whole[:, :-1], other[:, :-1])
    spread = _spread(whole[:, :-1])
    if moved == 0.0:
        return Finding(PROVEN, "moved by 0")
    exact = rounding <= _ROUNDING["float32"]
    if not exact and moved < float("inf"):
        # A leak moves all positions; a router that chose another expert, a few of them, and far.
        each = (_centred(whole[:, :-1]) - _centred(other[:, :-1])).square().mean(-1).sqrt()
        moved = float(each.flatten().median())
    share = moved / spread if spread else float("inf")
    got = f"moved by {share:.2g} of their spread"
    if not share <= rounding:
        return Finding(FAILED, got)
    # In half precision rounding is wide enough to hide a small leak.
    return Finding(PROVEN if exact else UNDECIDED, f"{got}, as much as rounding explains")


def _held(generator: GreedyGenerator, fed: int, own: int) -> Finding | None:
    held = generator.held_tokens
    if held is None or not generator.held_bytes:
        return None  # it does not count them, or keeps nothing and computes all of it each time
    got = f"{held} tokens held" + (f", {own} of them the model's own" if own else "")
    return Finding(PROVEN if held == fed + own else FAILED, got)


def _other_end(whole: torch.Tensor) -> torch.Tensor:
    """The same but for its last token, which is another one of the sequence where there is one."""
    import torch

    changed = whole.clone()
    for row in range(whole.shape[0]):
        others = whole[row][whole[row] != whole[row, -1]]
        if len(others):
            changed[row, -1] = others[0]
        else:
            changed[row, -1] = torch.where(whole[row, -1] > 0, whole[row, -1] - 1, 1)
    return changed


def _whole_logits(model: Any, ids: torch.Tensor, last: int) -> torch.Tensor:
    """Logits of the last positions, (batch, positions, vocabulary) float32; nothing is cached."""
    accepts = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "use_cache" in accepts:
        options["use_cache"] = False
    if "logits_to_keep" in accepts:
        options["logits_to_keep"] = min(last, ids.shape[1])
    logits: torch.Tensor = model(input_ids=ids, **options).logits[:, -last:].float()
    return logits


def _centred(logits: torch.Tensor) -> torch.Tensor:
    """Without what shifts a whole row: it changes no probability. Masked entries count as 0."""
    masked = logits <= _MASKED  # which no NaN is
    count = (~masked).sum(-1, keepdim=True).clamp(min=1)
    mean = logits.masked_fill(masked, 0.0).sum(-1, keepdim=True) / count
    return (logits - mean).masked_fill(masked, 0.0)


def _distance(one: torch.Tensor, two: torch.Tensor) -> float:
    """RMS over all entries of the difference of centred logits; NaN where one is no number."""
    return float((_centred(one) - _centred(two)).double().square().mean().sqrt())


def _spread(logits: torch.Tensor) -> float:
    return float(_centred(logits).double().square().mean().sqrt())
