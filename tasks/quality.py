"""What a number format costs: perplexity, and divergence from the same weights in float32.

Text is cut into windows that do not share context; in each, every token predicts the next, and
begin-of-text stands first where the model's tokenizer puts it there. Nothing here is timed for
publication.

========================  =========================================================================
``perplexity``            exp of the mean negative log-likelihood of the next token
``kl_to_reference``       mean over positions of KL(reference || model), nats
``top1_agreement``        share of positions where both choose the same token
``reference_perplexity``  the reference's own
========================  =========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.engines import transformers as loading
from orchestrator.engines.content import content_of, text_content
from orchestrator.engines.digest import digest_json
from orchestrator.engines.text_windows import Windows, cut, window_tokens
from orchestrator.engines.transformers import tokens
from orchestrator.engines.transformers.feasible import ATTENTIONS
from orchestrator.engines.transformers.proofs import prove_causal, rounding_of
from orchestrator.engines.transformers.reference import Reference, Window, reference_for
from orchestrator.measure import Identity, InputError, Recorder, Task
from orchestrator.measure.options import bounded, choice, options_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_METRICS = {
    "perplexity": "1",
    "kl_to_reference": "nats",
    "top1_agreement": "1",
    "reference_perplexity": "1",
}
_REFERENCE = {"scheme": "none", "dtype": "float32", "double_quant": False}
# Rows of (tokens, vocabulary) compared at once: bounds the temporaries to some 25 MB at 50,000.
_ROWS = 128


@dataclass
class QualityConfig:
    """Options of ``task=quality``.

    Attributes
    ----------
    tokens : int
        Positions scored.
    window : int
        Tokens of context at most, and no more than the model's own.
    text : str
        ``auto`` (``pydoc_topics``, or ``random`` where the model has no tokenizer),
        ``pydoc_topics``, ``random``, a ``.txt`` or ``.parquet`` file, ``hub:OWNER/NAME/FILE``.
    attention : str
        As in ``task=inference``.
    """

    name: str = "quality"
    tokens: int = bounded(1024, low=1)
    window: int = bounded(512, low=1)
    text: str = "auto"
    attention: str = choice(*ATTENTIONS)


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    options = identity["task"]
    return loading.check_model(identity) or loading.check_attention(identity, options["attention"])


def run(identity: Identity, recorder: Recorder) -> None:
    """Load the model and measure its quality."""
    import torch

    options = options_of(QualityConfig, identity)
    prepared = loading.prepare(identity, recorder)
    model = loading.load(prepared, identity, recorder, attention=options.attention)
    with torch.inference_mode():
        measure(model, prepared, identity, recorder, options, prove=True)


def measure(
    model: PreTrainedModel,
    prepared: loading.Prepared,
    identity: Identity,
    recorder: Recorder,
    options: QualityConfig,
    *,
    prove: bool = False,
) -> None:
    """Score ``model`` and record the metrics of this module, in a phase ``quality``.

    With ``prove``, :class:`Mismatch` for a model that sees the tokens it is to predict. Where the
    float32 model does not fit on the device, what needs it is absent with that reason.
    """
    import torch

    with recorder.phase("quality", measured=False):
        found = _windows(prepared, identity, options)
        if isinstance(found, str):
            for name, unit in _METRICS.items():
                recorder.absent(name, unit, found)
            return
        windows, text, ids = found
        recorder.fact("quality_text", text)
        recorder.fact("quality_tokens_digest", tokens.ids_digest(ids))
        recorder.fact("quality_windows", windows.facts())
        begin = len(windows.begin)
        inputs = [torch.tensor([*windows.begin, *each]) for each in windows.inputs]
        if prove:
            prove_causal(model, inputs[0], recorder, rounding_of(identity["quant"], model.config))
        logits_of = _logits_of(model)
        is_reference = all(identity["quant"][key] == value for key, value in _REFERENCE.items())
        reference: Reference | None = None
        absence = ""
        try:
            reference = reference_for(
                # Not of the weights alone: another rms_norm_eps is another model.
                digest_json({**content_of(identity["model"]), "model": prepared.weights_digest}),
                tokens.ids_digest(ids),
                inputs,
                lambda: (
                    logits_of
                    if is_reference
                    else _reference_logits(prepared, identity, options.attention)
                ),
                recorder,
            )
        except torch.OutOfMemoryError:
            absence = "the float32 reference does not fit into the device's memory"
        sums = _Sums()
        for index, (ids_in, following) in enumerate(zip(inputs, windows.targets, strict=True)):
            # What follows begin-of-text itself was predicted at the end of the window before.
            logits = logits_of(ids_in)[begin:]
            seen: Window | None = None
            if is_reference:
                # Compared with itself, not with its stored form: the rounding is not its error.
                seen = Window(logits, logits.argmax(dim=-1))
            elif reference is not None:
                whole = reference.window(index, logits.device)
                seen = Window(whole.logits[begin:], whole.top1[begin:])
            sums.add(logits, torch.tensor(following, device=logits.device), seen)
    sums.record(recorder, absence)


class _Sums:
    """Sums over positions, in double precision."""

    def __init__(self) -> None:
        self._positions = 0
        self._compared = 0
        self._loss = self._reference_loss = self._divergence = 0.0
        self._agreed = 0

    def add(self, logits: torch.Tensor, targets: torch.Tensor, reference: Window | None) -> None:
        """Add one window: logits (tokens, vocabulary) float32, targets (tokens,)."""
        import torch

        for start in range(0, len(targets), _ROWS):
            rows = slice(start, start + _ROWS)
            wanted = targets[rows, None]
            own = torch.log_softmax(logits[rows], dim=-1)
            self._positions += len(wanted)
            self._loss -= float(own.gather(1, wanted).double().sum())
            if reference is None:
                continue
            theirs = torch.log_softmax(reference.logits[rows], dim=-1)
            # Where the reference gives no weight at all, a term is 0, also against -inf.
            terms = torch.where(theirs.exp() > 0, theirs.exp() * (theirs - own), 0.0)
            self._compared += len(wanted)
            self._divergence += float(terms.sum(dim=-1, dtype=torch.float64).sum())
            self._reference_loss -= float(theirs.gather(1, wanted).double().sum())
            self._agreed += int((own.argmax(dim=-1) == reference.top1[rows]).sum())

    def record(self, recorder: Recorder, absence: str) -> None:
        """Record the means; what needs the reference is absent for the reason ``absence``."""
        recorder.value("perplexity", "1", _exp(self._loss / self._positions))
        if not self._compared:
            for name, unit in _METRICS.items():
                if name != "perplexity":
                    recorder.absent(name, unit, absence)
            return
        recorder.value("kl_to_reference", "nats", self._divergence / self._compared)
        recorder.value("top1_agreement", "1", self._agreed / self._compared)
        recorder.value("reference_perplexity", "1", _exp(self._reference_loss / self._compared))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _logits_of(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        output: Any = model(input_ids=ids[None].to(model.device), use_cache=False)
        return output.logits[0].float()

    return logits_of


def _reference_logits(
    prepared: loading.Prepared, identity: Identity, attention: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    model = loading.load_unmeasured(
        prepared,
        _REFERENCE,
        identity["device"],
        identity["seed"],
        attention="eager" if attention == "eager" else "sdpa",
        trust_remote_code=identity["model"]["trust_remote_code"],
    )
    return _logits_of(model)


def _windows(
    prepared: loading.Prepared, identity: Identity, options: QualityConfig
) -> tuple[Windows, str, list[int]] | str:
    """What is scored, its text's name and its ids; or a line why there is nothing to score.

    A model that was to read a text and cannot is never given random tokens instead.
    """
    count = options.tokens + 1
    name = options.text
    if name == "auto":
        name = "random" if prepared.directory is None else "pydoc_topics"
    begin: list[int] = []
    if name == "random":
        ids = tokens.prompt(prepared, identity["seed"], 1, count)[0].tolist()
        text = "random tokens"
    else:
        trusted = bool(identity["model"]["trust_remote_code"])
        tokenizer = tokens.load_tokenizer(prepared, trust_remote_code=trusted)
        if isinstance(tokenizer, str):
            if options.text == "auto":
                return tokenizer
            raise InputError(tokenizer, where="task.text", fix="Use task.text=random")
        ids, text = tokens.text_ids(tokenizer, prepared, name, count), name
        begin = tokens.begin_of_text(tokenizer)
    window = window_tokens(options.window, prepared.context_tokens)
    return cut(ids, window, begin), text, ids


def content(identity: Identity) -> dict[str, str | None]:
    """Of the model, and of the text."""
    return content_of(identity["model"]) | text_content(identity["task"]["text"])


TASK = Task(
    name="quality",
    config=QualityConfig,
    run=run,
    check=check,
    preload=loading.PRELOAD,
    content=content,
    headline=("kl_to_reference", "perplexity", "top1_agreement"),
)
