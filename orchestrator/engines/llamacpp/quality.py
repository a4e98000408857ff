"""How good a format is: perplexity, and its distance to the same weights in BF16.

Each token of a text is predicted from all before it in its window, one by one, through the very
path that was timed. Of each prediction the server gives the ``TOP`` likeliest tokens with their
probabilities over the whole vocabulary::

    perplexity        exp of the mean of -log p(the token that follows)
    top1_agreement    share of positions at which both find the same token likeliest
    kl_to_reference   mean over positions of the sum of p log(p / q): p of the reference, q of this
                      format, over the tokens that both name, all others together as one. Putting
                      tokens together never increases a divergence: it is a lower bound
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.measure import Mismatch, Recorder

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.engines.llamacpp.server import LlamaServer
    from orchestrator.engines.text_windows import Windows

#: Likeliest tokens of each position that are compared one by one.
TOP = 2048
# Probabilities come as float32: less than this is what rounding leaves of nothing.
_LEAST_MASS = 1e-7
_MOST_NATS = 700.0


@dataclass(frozen=True)
class Predictions:
    """What a model says of a text, position by position.

    Attributes
    ----------
    ids : ndarray
        (positions, TOP), int32: tokens, likeliest first.
    logprobs : ndarray
        (positions, TOP), float32: theirs.
    next_logprobs : ndarray
        (positions,), float64: of the tokens that follow.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    next_logprobs: np.ndarray

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean loss."""
        return math.exp(min(-float(self.next_logprobs.mean()), _MOST_NATS))

    def save(self, file: Path) -> None:
        """Write to ``file``."""
        import numpy as np

        with file.open("wb") as stream:
            np.savez(stream, ids=self.ids, logprobs=self.logprobs, next_logprobs=self.next_logprobs)

    @classmethod
    def load(cls, file: Path) -> Predictions:
        """Read what :meth:`save` wrote."""
        import numpy as np

        with np.load(file, allow_pickle=False) as stored:
            return cls(stored["ids"], stored["logprobs"], stored["next_logprobs"])


def predict(server: LlamaServer, windows: Windows, vocabulary: int) -> Predictions:
    """Predict each target of each window from all before it in its window."""
    import numpy as np

    count = min(TOP, vocabulary)
    tokens: list[list[int]] = []
    logprobs: list[list[float]] = []
    followed: list[float] = []
    for inputs, targets in zip(windows.inputs, windows.targets, strict=True):
        for position, target in enumerate(targets):
            before = [*windows.begin, *inputs[: position + 1]]
            # The token that follows is rarely far down; a whole vocabulary takes long to hand over.
            for asked in (count, vocabulary):
                found = server.next_logprobs(before, asked)
                known = dict(found)
                if target in known:
                    break
            else:
                raise Mismatch(f"llama.cpp gives no probability for token {target}")
            followed.append(known[target])
            tokens.append([token for token, _ in found[:count]])
            logprobs.append([value for _, value in found[:count]])
    return Predictions(
        np.array(tokens, np.int32), np.array(logprobs, np.float32), np.array(followed, np.float64)
    )


@dataclass(frozen=True)
class Distance:
    """How far one model's predictions are from another's, per position."""

    kl_nats: float
    top1_agreement: float


def distance(model: Predictions, reference: Predictions) -> Distance:
    """Of ``model`` to ``reference``, on the same text."""
    import numpy as np

    nats: list[float] = []
    for own_ids, own, their_ids, theirs in zip(
        model.ids, model.logprobs, reference.ids, reference.logprobs, strict=True
    ):
        _, in_own, in_theirs = np.intersect1d(own_ids, their_ids, return_indices=True)
        log_q = own[in_own].astype(np.float64)
        log_p = theirs[in_theirs].astype(np.float64)
        p, q = np.exp(log_p), np.exp(log_q)
        rest_p, rest_q = (max(1.0 - float(mass.sum()), _LEAST_MASS) for mass in (p, q))
        whole = float((p * (log_p - log_q)).sum()) + rest_p * math.log(rest_p / rest_q)
        nats.append(max(whole, 0.0))
    same = model.ids[:, 0] == reference.ids[:, 0]
    return Distance(math.fsum(nats) / len(nats), float(same.mean()))


def record(recorder: Recorder, own: Predictions, reference: Predictions | str) -> None:
    """Record the metrics; ``reference`` may be the reason why there is none."""
    recorder.value("perplexity", "1", own.perplexity)
    if isinstance(reference, str):
        for name, unit in (
            ("kl_to_reference", "nats"),
            ("top1_agreement", "1"),
            ("reference_perplexity", "1"),
        ):
            recorder.absent(name, unit, reference)
        return
    found = distance(own, reference)
    recorder.value("kl_to_reference", "nats", found.kl_nats)
    recorder.value("top1_agreement", "1", found.top1_agreement)
    recorder.value("reference_perplexity", "1", reference.perplexity)
