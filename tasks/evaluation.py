"""``task.evaluate``: quality on tasks of others, answered by the engine that was measured.

::

    lm-evaluation-harness            what is asked: (context, continuation), or a whole text
    this process                     log-likelihoods, by the session
    lm-evaluation-harness            metrics, and what each item scored

The harness runs elsewhere, in ``environment=lm_eval``: an engine's environment need not have it.
Texts become ids as the harness's ``hf`` model makes them (``lm_eval/api/model.py``), so answers of
a float32 model are its answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestrator.engines.digest import digest_files, digest_json
from orchestrator.engines.port import Session, Tokenizer
from orchestrator.engines.separate import run_module
from orchestrator.measure import ConfigError, InputError, MetricSpec, Recorder
from orchestrator.measure.vocabulary import EVALUATION

#: Room for the longest request, where the model's context is larger.
LONGEST_TOKENS = 4096
LOSS = f"{EVALUATION}item_loss"
#: What most tasks of multiple choice give, in the order of a table's columns.
HEADLINE = (LOSS, f"{EVALUATION}acc", f"{EVALUATION}acc_norm", f"{EVALUATION}perplexity")
_HARNESS = "lm_eval:"
_WHERE = "task.evaluate"
_WAY = "Write lm_eval:NAME of one of its tasks, or lm_eval:FILE.yaml"
_LIKELIHOOD = "loglikelihood"
_ANSWERED = {_LIKELIHOOD, "loglikelihood_rolling"}
_SAME_MEAN = 1e-5
_LOSS_SPEC = MetricSpec(
    LOSS,
    "nats",
    "lower",
    exact=True,
    title="item loss",
    meaning="of the right answer among those of an item, mean over items",
)


def check(asked: str) -> None:
    """:class:`ConfigError` where ``task.evaluate`` has no sense."""
    if not asked:
        return
    name = asked.removeprefix(_HARNESS)
    if name == asked or not name:
        raise ConfigError(f"{asked!r} names no evaluation", where=_WHERE, fix=_WAY)
    if _is_file(name) and not Path(name).expanduser().is_file():
        raise ConfigError(f"no such file: {name}", where=_WHERE, fix=_WAY)


def content(asked: str) -> dict[str, str | None]:
    """Digest of a task's file and of the files it names; nothing where its name says it all."""
    name = asked.removeprefix(_HARNESS)
    if not asked or not _is_file(name):
        return {}
    file = Path(name).expanduser().resolve()
    words = re.findall(r"[^\s\"'\[\]{},]+", file.read_text(encoding="utf-8"))
    named = {found for word in words if (found := file.parent / word).is_file()}
    return {"evaluation": digest_files([file, *sorted(named - {file})])}


def measure(session: Session, recorder: Recorder, asked: str) -> None:
    """Record every metric of the harness as ``evaluation.<metric>``, and the items as an artifact.

    Raises
    ------
    InputError
        If there is no such task, it asks for more than log-likelihoods, or the model has no
        tokenizer.
    """
    tokenizer = session.tokenizer()
    if isinstance(tokenizer, str):
        raise InputError(tokenizer, where=_WHERE, fix="Leave it out")
    of = asked.removeprefix(_HARNESS)
    if _is_file(of):
        of = str(Path(of).expanduser().resolve())
    request = {"of": of, "content": content(asked)}
    with recorder.phase("harness", measured=False):
        requests = _ask(request, recorder.directory)
    if strange := {one["kind"] for one in requests} - _ANSWERED:
        raise InputError(
            f"{of} asks for {', '.join(sorted(strange))}, and only log-likelihoods are answered",
            where=_WHERE,
            fix="Choose a task of multiple choice or of perplexity",
        )
    reader = _Reader(session, tokenizer)
    with recorder.phase("evaluate", measured=False):
        answers = [_answer(reader, one) for one in requests]
    with recorder.phase("harness", measured=False):
        found = _ask({**request, "answers": answers}, recorder.directory)
    _record(recorder, found, of, digest_json(requests), reader)


class _Reader:
    """Log-likelihoods of texts."""

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        self._session = session
        self._encode = tokenizer.encode
        self._begin = list(tokenizer.begin_of_text)
        self._start_id = tokenizer.start_id
        self._limit = min(session.context_tokens or LONGEST_TOKENS, LONGEST_TOKENS)
        self.cut = 0

    def likelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """Log-likelihood of ``continuation`` after ``context``, and whether it is the likeliest."""
        if not context.strip():
            continuation = context + continuation
            before, after = self._start(), self._encode(continuation)
            if after[:1] == before:
                before, after = after[:1], after[1:]
        else:
            spaces = len(context) - len(context.rstrip())
            if spaces:
                context, continuation = context[:-spaces], context[-spaces:] + continuation
            before = [*self._begin, *self._encode(context)]
            after = [*self._begin, *self._encode(context + continuation)][len(before) :]
        if not after:
            raise InputError(
                f"nothing is left to predict of {continuation!r} after {context[-40:]!r}",
                where=_WHERE,
                fix="The model's tokenizer joins the two: choose another task",
            )
        if len(after) > self._limit:
            raise InputError(
                f"an answer has {len(after)} tokens, more than the {self._limit} that are read",
                where=_WHERE,
                fix="Choose another task",
            )
        ids = [*before, *after]
        # One more than the context holds: what the last token leads to is not asked.
        self.cut += len(ids) > self._limit + 1
        return self._score(ids[-(self._limit + 1) :], len(after))

    def whole(self, text: str) -> float:
        """Log-likelihood of a text, in windows as long as the context, each after one token."""
        ids = [*self._begin, *self._encode(text)]
        total, done = 0.0, 0
        while done < len(ids):
            count = min(self._limit, len(ids) - done)
            # The last window keeps its length: what is scored already is context.
            begin = max(0, done + count - self._limit) if done else 0
            before = ids[begin - 1 : done] if begin else [*self._start(), *ids[:done]]
            total += self._score([*before, *ids[done : done + count]], count)[0]
            done += count
        return total

    def _start(self) -> list[int]:
        if self._start_id is None:
            raise InputError(
                "the model's tokenizer has no token to predict the first of a text from",
                where=_WHERE,
                fix="Choose a task whose items have a context",
            )
        return [self._start_id]

    def _score(self, ids: Sequence[int], count: int) -> tuple[float, bool]:
        return self._session.likelihood(ids[:-1], ids[-count:])


def _answer(reader: _Reader, request: dict[str, Any]) -> tuple[float, bool] | float:
    if request["kind"] == _LIKELIHOOD:
        return reader.likelihood(*request["arguments"])
    return reader.whole(*request["arguments"])


def _ask(request: dict[str, Any], directory: Path) -> Any:
    question, answer = directory / "harness-request.json", directory / "harness-answer.json"
    question.write_text(json.dumps(request))
    try:
        run_module(
            "orchestrator.evaluation.harness",
            question,
            answer,
            failed="lm-evaluation-harness cannot do this",
            where=_WHERE,
            fix=_WAY,
        )
        return json.loads(answer.read_text())
    finally:
        for file in (question, answer):
            file.unlink(missing_ok=True)


def _record(
    recorder: Recorder, found: dict[str, Any], of: str, digest: str, reader: _Reader
) -> None:
    items, metrics = found["items"], found["metrics"]
    means = {name: one["value"] for name, one in metrics.items()}
    losses = [one["scores"]["item_loss"] for one in items if "item_loss" in one["scores"]]
    if len(losses) == len(items):
        means["item_loss"] = fmean(losses)
    scores = {}
    for name, mean in means.items():
        every = [round(one["scores"].get(name, nan), 6) for one in items]
        # What is no mean over items (a perplexity, an F1) has no pairs.
        if abs(fmean(every) - mean) < _SAME_MEAN:
            scores[f"{EVALUATION}{name}"] = every
    specs = [
        # A mean of fixed items does not scatter; of other figures the error is not known here.
        MetricSpec(metric, "1", one["better"], metric in scores, title=name.replace("_", " "))
        for name, one in metrics.items()
        for metric in (f"{EVALUATION}{name}",)
    ]
    recorder.declare([_LOSS_SPEC, *specs])
    if "item_loss" not in means:
        recorder.absent(LOSS, "nats", "not every item has one right answer")
    for name, mean in means.items():
        recorder.value(f"{EVALUATION}{name}", "nats" if name == "item_loss" else "1", mean)
    recorder.fact(
        "evaluation",
        {
            "of": of,
            "by": f"lm-eval {found['version']}",
            "digest": digest,
            "items": len(items),
            "cut_requests": reader.cut,
            "standard_errors": {name: one["standard_error"] for name, one in metrics.items()},
        },
    )
    recorder.fact("evaluation_items", scores)
    with recorder.artifact("evaluation.jsonl").open("w", encoding="utf-8") as lines:
        for one in items:
            lines.write(json.dumps(one) + "\n")


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))
