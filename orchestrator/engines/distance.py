"""How far a model's predictions are from a reference's, summed over the positions of a text.

================================  ==================================================================
``perplexity``                    exp of the mean negative log-likelihood of the next token
``kl_to_reference``               mean over positions of KL(reference || model), nats
``kl_top_to_reference``           of an engine that gives its likeliest tokens only: the same over
                                  these, all others together as one. Putting tokens together never
                                  increases a divergence: a lower bound
``top1_agreement``                share of positions where both choose the same token
``reference_perplexity``          the reference's own
================================  ==================================================================
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from orchestrator.engines.port import NextLogprobs
from orchestrator.measure import Recorder

if TYPE_CHECKING:
    import numpy as np

KL, KL_TOP = "kl_to_reference", "kl_top_to_reference"
METRICS = {
    "perplexity": "1",
    KL: "nats",
    "top1_agreement": "1",
    "reference_perplexity": "1",
}
# Rows of (positions, vocabulary) compared at once: bounds the temporaries to some 25 MB at 50,000.
_ROWS = 128
# Log-probabilities are float32: less than this is what rounding leaves of nothing.
_LEAST_MASS = 1e-7


class Distance:
    """Sums over positions, in double precision."""

    def __init__(self) -> None:
        self._positions = self._compared = self._agreed = 0
        self._loss = self._reference_loss = self._divergence = 0.0
        self._whole = True

    def add(self, own: NextLogprobs, reference: NextLogprobs | None) -> None:
        """Add one window; the reference has the whole vocabulary."""
        self._positions += len(own.targets)
        self._loss -= float(own.targets.sum())
        if reference is None:
            return
        self._compared += len(own.targets)
        self._reference_loss -= float(reference.targets.sum())
        self._agreed += int((own.top1 == reference.top1).sum())
        self._whole = self._whole and own.ids is None
        for start in range(0, len(own.targets), _ROWS):
            rows = slice(start, start + _ROWS)
            if own.ids is None:
                terms = whole_kl(reference.logprobs[rows], own.logprobs[rows])
            else:
                terms = top_kl(reference.logprobs[rows], own.ids[rows], own.logprobs[rows])
            self._divergence += float(terms.sum())

    def record(self, recorder: Recorder, absence: str) -> None:
        """Record the means; what needs the reference is absent for the reason ``absence``."""
        recorder.value("perplexity", "1", _exp(self._loss / self._positions))
        if not self._compared:
            for name, unit in METRICS.items():
                if name != "perplexity":
                    recorder.absent(name, unit, absence)
            return
        name = KL if self._whole else KL_TOP
        recorder.value(name, "nats", self._divergence / self._compared)
        recorder.value("top1_agreement", "1", self._agreed / self._compared)
        recorder.value("reference_perplexity", "1", _exp(self._reference_loss / self._compared))


def whole_kl(reference: np.ndarray, own: np.ndarray) -> np.ndarray:
    """KL(reference || own) of log-probabilities, (positions, vocabulary); (positions,), nats."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        weight = np.exp(reference)
        # Where the reference gives no weight at all, a term is 0, also against -inf.
        terms = np.where(weight > 0, weight * (reference - own), 0.0)
    # What rounding leaves of nothing may lie on either side of it.
    found: np.ndarray = np.maximum(terms.sum(axis=-1, dtype=np.float64), 0.0)
    return found


def top_kl(reference: np.ndarray, ids: np.ndarray, own: np.ndarray) -> np.ndarray:
    """As :func:`whole_kl`, over the tokens ``ids`` that ``own`` is of, (positions, k).

    All other tokens count as one.
    """
    import numpy as np

    log_p = np.take_along_axis(reference, ids, axis=-1).astype(np.float64)
    log_q = own.astype(np.float64)
    p = np.exp(log_p)
    rest_p = np.maximum(1.0 - p.sum(-1), _LEAST_MASS)
    rest_q = np.maximum(1.0 - np.exp(log_q).sum(-1), _LEAST_MASS)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
    found: np.ndarray = np.maximum(terms + rest_p * np.log(rest_p / rest_q), 0.0)
    return found


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
