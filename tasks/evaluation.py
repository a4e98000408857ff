"""``task.evaluate``: quality on tasks of others, answered by the engine that was measured.

::

    lm-evaluation-harness            what is asked: log-likelihoods, or text that follows a context
    this process                     answers, by the session
    lm-evaluation-harness            metrics, and what each item scored

The harness runs elsewhere, in ``environment=lm_eval``: an engine's environment need not have it.
Texts become ids, and ids texts, as the harness's ``hf`` model makes them (``lm_eval/api/model.py``,
``lm_eval/models/huggingface.py``), so answers of a float32 model are its answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestrator.engines.digest import digest_files, digest_json
from orchestrator.engines.port import Session
from orchestrator.engines.separate import run_module
from orchestrator.engines.tokenizer import Tokenizer
from orchestrator.measure import ConfigError, InputError, MetricSpec, Recorder
from orchestrator.measure.vocabulary import EVALUATION

#: Room for the longest request, where the model's context is larger.
LONGEST_TOKENS = 4096
LOSS = f"{EVALUATION}item_loss"
#: In the order of a table's columns: what most tasks of multiple choice give, then all others.
HEADLINE = (LOSS, f"{EVALUATION}acc", f"{EVALUATION}acc_norm", f"{EVALUATION}*")
_HARNESS = "lm_eval:"
_WHERE = "task.evaluate"
_WAY = "Write lm_eval:NAME of one of its tasks, or lm_eval:FILE.yaml"
_GENERATED = "generate_until"
# As the harness names what limits a generation, the first of them first, and its own limit.
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_MOST_TOKENS = 256
# What else a task may say of a generation that is greedy all the same.
_OF_GREEDY = {"until", "do_sample", "temperature", "top_p", "top_k", *_LIMITS}
_SAME_MEAN = 1e-5
# Files of a task that name others: what it includes, and code.
_NAMING = (".yaml", ".yml", ".py")
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
    first, *named = _files_of(Path(name).expanduser().resolve())
    return {"evaluation": digest_files([first, *sorted(named)])}


def _files_of(file: Path) -> list[Path]:
    """``file`` first, and what it and the files that it names name: data, other tasks, code."""
    found, left = [file], [file]
    while left:
        each = left.pop()
        if each.suffix not in _NAMING:
            continue
        words = set(re.findall(r"[^\s\"'\[\]{},]{1,255}", each.read_text(encoding="utf-8")))
        # `!function utils.gold` is of utils.py, and so is `import utils`.
        places = words | {word.partition(".")[0] + ".py" for word in words}
        named = {each.parent / place for place in places if len(place) < 256}
        new = [path for path in sorted(named) if path.is_file() and path not in found]
        found += new
        left += new
    return found


def measure(session: Session, recorder: Recorder, asked: str) -> None:
    """Record every metric of the harness as ``evaluation.<metric>``, and the items as an artifact.

    Raises
    ------
    InputError
        If there is no such task, it asks for sampled text, or the model has no tokenizer.
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
    reader = _Reader(session, tokenizer)
    for one in requests:
        if one["kind"] == _GENERATED:
            reader.check(one["arguments"][1])
    answer: dict[str, Callable[..., Any]] = {
        "loglikelihood": reader.likelihood,
        "loglikelihood_rolling": reader.whole,
        _GENERATED: reader.generation,
    }
    with recorder.phase("evaluate", measured=False):
        answers = [answer[one["kind"]](*one["arguments"]) for one in requests]
    with recorder.phase("harness", measured=False):
        found = _ask({**request, "answers": answers}, recorder.directory)
    _record(recorder, found, of, digest_json(requests), reader)


class _Reader:
    """Log-likelihoods of texts, and what follows them."""

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        self._session = session
        self._tokenizer = tokenizer
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
            before = self._ids(context)
            after = self._ids(context + continuation)[len(before) :]
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
        ids = self._ids(text)
        total, done = 0.0, 0
        while done < len(ids):
            count = min(self._limit, len(ids) - done)
            # The last window keeps its length: what is scored already is context.
            begin = max(0, done + count - self._limit) if done else 0
            before = ids[begin - 1 : done] if begin else [*self._start(), *ids[:done]]
            total += self._score([*before, *ids[done : done + count]], count)[0]
            done += count
        return total

    def check(self, options: Mapping[str, Any]) -> None:
        """:class:`InputError` where a generation asked for so has no answer here."""
        temperature = float(options.get("temperature") or 0.0)
        sampled = options.get("do_sample")
        odd = {name: options[name] for name in sorted(options.keys() - _OF_GREEDY)}
        if temperature > 0 if sampled is None else sampled:
            odd |= {"do_sample": True, "temperature": temperature}
        if odd:
            asked = ", ".join(f"{name}={value}" for name, value in odd.items())
            raise InputError(
                f"the task asks for text generated with {asked}, and answers are greedy",
                where=_WHERE,
                fix="Choose another task, or a file of your own with other generation_kwargs",
            )
        if (most := _most_tokens(options)) >= self._limit:
            raise InputError(
                f"an answer may have {most} tokens, and no context is left of {self._limit}",
                where=_WHERE,
                fix="Choose a task with a smaller max_gen_toks",
            )

    def generation(self, context: str, options: Mapping[str, Any]) -> str:
        """What follows ``context``, up to the texts that end it."""
        most, until = _most_tokens(options), options.get("until") or []
        room = self._limit - most
        ids = self._ids(context) or self._start()
        self.cut += len(ids) > room
        until = [until] if isinstance(until, str) else until
        return self._session.continuation(ids[-room:], most, until, self._tokenizer)

    def _ids(self, text: str) -> list[int]:
        ids = self._encode(text)
        # A text may bring its begin-of-text along.
        return ids if ids[: len(self._begin)] == self._begin else [*self._begin, *ids]

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


def _most_tokens(options: Mapping[str, Any]) -> int:
    given = (options[name] for name in _LIMITS if options.get(name) is not None)
    return int(next(given, _MOST_TOKENS))


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
    answers = [answer for one in items for answer in one["answers"]]
    if "item_loss" not in means and not all(isinstance(answer, str) for answer in answers):
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
