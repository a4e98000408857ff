"""What a number format costs: perplexity, and divergence from the same weights in float32.

Text is cut into windows that do not share context; in each, every token predicts the next, and
begin-of-text stands first where the model's tokenizer puts it there. Nothing here is timed for
publication. What is recorded: ``engines/distance.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from orchestrator.engines import registry as engines
from orchestrator.engines import texts
from orchestrator.engines.content import content_of, text_content
from orchestrator.engines.digest import ids_digest
from orchestrator.engines.distance import METRICS, Distance
from orchestrator.engines.port import NextLogprobs, Session, Work
from orchestrator.engines.reference import is_reference, reference_for
from orchestrator.engines.text_windows import WINDOW_TOKENS, Windows, cut, window_tokens
from orchestrator.measure import Identity, InputError, Recorder, Task
from orchestrator.measure.options import bounded, options_of
from orchestrator.tasks import evaluation


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
    evaluate : str
        Also answer a task of lm-evaluation-harness: ``lm_eval:NAME`` or ``lm_eval:FILE``.
    """

    name: str = "quality"
    tokens: int = bounded(1024, low=1)
    window: int = bounded(WINDOW_TOKENS, low=1)
    text: str = "auto"
    evaluate: str = ""


def _work(options: QualityConfig) -> Work:
    return Work(
        tokens=1,
        scored_tokens=min(options.tokens, options.window),
        read_tokens=evaluation.LONGEST_TOKENS if options.evaluate else 0,
    )


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    options = options_of(QualityConfig, identity)
    evaluation.check(options.evaluate)
    if options.text not in ("auto", "random"):
        texts.check_text(options.text, where="task.text")
    return engines.check(identity, _work(options))


def run(identity: Identity, recorder: Recorder) -> None:
    """Load the model and measure its quality."""
    options = options_of(QualityConfig, identity)
    work = _work(options)
    session = engines.load(engines.prepare(identity, recorder, work), work, recorder)
    if options.evaluate:
        evaluation.measure(session, recorder, options.evaluate)
    measure(session, identity, recorder, options, prove=True)
    session.close()


def measure(
    session: Session,
    identity: Identity,
    recorder: Recorder,
    options: QualityConfig,
    *,
    prove: bool = False,
) -> None:
    """Record perplexity and, where the reference can be had, the distance to it.

    Parameters
    ----------
    session : Session
        Closed afterwards where it gives its likeliest tokens only: it and the reference may not
        fit together.
    prove : bool
        Also prove that the model is causal, where nothing was proven yet.
    """
    with recorder.phase("quality", measured=False):
        found = _windows(session, identity, options)
        if isinstance(found, str):
            for name, unit in METRICS.items():
                recorder.absent(name, unit, found)
            return
        windows, text, ids = found
        recorder.fact("quality_text", text)
        recorder.fact("quality_tokens_digest", ids_digest(ids))
        recorder.fact("quality_windows", windows.facts())
        if prove:
            session.prove([windows.inputs[0]], 0, recorder)
        first, *rest = windows
        begun = session.next_logprobs(*first)
        own: Iterable[NextLogprobs] = chain(
            [begun], (session.next_logprobs(*each) for each in rest)
        )
        itself = is_reference(identity)
        if begun.ids is not None:
            own = list(own)
            session.close()
        reference = reference_for(identity, windows, recorder, session if itself else None)
        distance = Distance()
        if isinstance(reference, str):
            for each in own:
                distance.add(each, None)
        else:
            for each, theirs in zip(own, reference, strict=True):
                # Compared with itself, not with its stored form: the rounding is not its error.
                distance.add(each, each if itself else theirs)
        distance.record(recorder, reference if isinstance(reference, str) else "")


def _windows(
    session: Session, identity: Identity, options: QualityConfig
) -> tuple[Windows, str, list[int]] | str:
    """What is scored, its text's name and its ids; or a line why there is nothing to score.

    A model that was to read a text and cannot is never given random tokens instead.
    """
    if session.unscored is not None:
        return session.unscored
    count = options.tokens + 1
    name = options.text
    if name == "auto":
        name = "random" if identity["model"]["source"] == "random" else texts.PACKAGED_TEXT
    begin: tuple[int, ...] = ()
    if name == "random":
        (ids,) = texts.random_prompt(session.ordinary_ids, identity["seed"], 1, count)
        text = "random tokens"
    else:
        tokenizer = session.tokenizer()
        if isinstance(tokenizer, str):
            if options.text == "auto":
                return tokenizer
            raise InputError(tokenizer, where="task.text", fix="Use task.text=random")
        ids = texts.text_ids(tokenizer, session.vocabulary, name, count, where="task.text")
        text, begin = name, tokenizer.begin_of_text
    window = window_tokens(options.window, session.context_tokens)
    return cut(ids, window, begin), text, ids


def content(identity: Identity) -> dict[str, str | None]:
    """Of the model, and of the texts."""
    options = identity["task"]
    found = content_of(identity["model"]) | text_content(options["text"])
    return found | evaluation.content(options["evaluate"])


TASK = Task(
    name="quality",
    config=QualityConfig,
    run=run,
    unread=("protocol", "engine.cache", "engine.compile", "engine.token_sleep_s"),
    check=check,
    on_engine=True,
    preload=engines.preload,
    secrets=engines.secrets,
    packages=engines.packages,
    content=content,
    headline=(
        "kl_to_reference",
        "kl_top_to_reference",
        "perplexity",
        "top1_agreement",
        *evaluation.HEADLINE,
    ),
    named=("gguf_layers", "file_layers"),
)
