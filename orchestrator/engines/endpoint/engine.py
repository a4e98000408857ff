"""``engine=endpoint``: a model that some server runs, behind OpenAI's completions API.

Nothing of the machine, the weights or their format is known, and no trial of it counts as done for
a later run. The tokens are the server's own: its tokenizer makes the prompts, its counts say how
many came.
"""

from __future__ import annotations

import json
import re
import statistics
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from orchestrator.engines.completions import (
    Completion,
    fault_of,
    likeliest_next,
    prompt_logprobs,
    read_completion,
    text_of,
)
from orchestrator.engines.endpoint.client import Endpoint, key_of
from orchestrator.engines.likeliest_proofs import prove
from orchestrator.engines.next_tokens import TOP, along
from orchestrator.engines.port import (
    Engine,
    Footprint,
    Generation,
    Model,
    NextLogprobs,
    Prompt,
    Service,
    Session,
    Work,
)
from orchestrator.engines.proof import FAILED, PROVEN, UNDECIDED, Finding
from orchestrator.engines.source import model_path
from orchestrator.engines.texts import PACKAGED_TEXT, begin_of_text, read_text
from orchestrator.engines.tokenizer import Tokenizer, cut_before
from orchestrator.host.secrets import is_secret
from orchestrator.measure import Clock, ConfigError, Identity, InputError, Mismatch, Recorder
from orchestrator.measure.sampling import Phases, no_phase

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SAMPLE_CHARACTERS = 200_000
_PROBE = "a text"
# As many as vLLM gives of a prompt's tokens unless it was started with more.
_TOP_OF_PROMPT = 20
# As many as OpenAI's API takes.
_MOST_STOPS = 4
# No id of a vocabulary that is not known is out of range.
_ANY_VOCABULARY = 1 << 31
# One read may bring all of a short answer where this process had to wait for its core.
_TRIES = 3
# A prompt out of a cache takes a fraction of what a new one takes.
_REUSED, _LEAST_S, _PAIRS = 1.5, 1e-3, 6


@dataclass
class EndpointConfig:
    """Options of ``engine=endpoint``.

    Attributes
    ----------
    url : str
        What ``/completions`` follows: ``http://host:8000/v1``.
    model : str or None
        The server's name for it; None where it lists only one.
    key_variable : str or None
        Name of the variable that holds the key.
    """

    name: str = "endpoint"
    url: str | None = None
    model: str | None = None
    key_variable: str | None = None


class EndpointModel(Model):
    """A model that a server lists."""

    files = ()
    loaded = "the server had loaded it before"

    def __init__(self, server: Endpoint, listed: Mapping[str, Any], identity: Identity, clock: Any):
        meta = listed.get("meta") or {}
        self.server = server
        self.identity = identity
        self.clock: Clock = clock
        self.vocabulary = meta.get("n_vocab")
        self.context_tokens = listed.get("max_model_len") or meta.get("n_ctx")

    def load(self, work: Work) -> EndpointSession:
        return EndpointSession(self, work)


class EndpointSession(Session):
    """What a server answers, one request at a time."""

    memory = "the server's memory cannot be seen from here"

    def __init__(self, model: EndpointModel, work: Work) -> None:
        self._may_reuse = work.reuse
        self._server = model.server
        self._identity = model.identity
        self._clock = model.clock
        self.context_tokens = model.context_tokens
        sample = self._server.tokenize(read_text(PACKAGED_TEXT, _SAMPLE_CHARACTERS))
        self._reads_text = sample is not None
        known = _vocabulary_of(model.identity["model"]) if sample is None else model.vocabulary
        self.vocabulary = known or _ANY_VOCABULARY
        self.ordinary_ids = range(self.vocabulary) if sample is None else sorted(set(sample))
        if sample is None and known is None:
            raise InputError(
                "the server has no /tokenize, and the vocabulary is not known",
                where="engine=endpoint",
                fix="Give model=path model.path=DIRECTORY with the model's config.json",
            )
        self._takes_options = True
        self._scores_by = self._probe()
        if self._scores_by is None:
            self.unscored = "the server gives no log-probabilities of a prompt by token id"
        self._last: Completion | None = None

    def ready(self, recorder: Recorder) -> None:
        recorder.fact(
            "endpoint",
            {
                "model": self._server.model,
                "prompts": "the server's tokenizer" if self._reads_text else "ids by model=",
                "takes ignore_eos and min_tokens": self._takes_options,
                "log-probabilities": self._scores_by or "none",
            },
        )

    def generate(self, prompt: Prompt, new_tokens: int, phases: Phases = no_phase) -> Generation:
        (ids,) = prompt
        for _ in range(_TRIES):
            with phases.together("generate"):
                answer = read_completion(*self._server.stream(self._request(ids, new_tokens)))
            _require_counts(answer, len(ids), new_tokens)
            if new_tokens == 1 or answer.arrivals_ns[0] < answer.arrivals_ns[-1]:
                break
        else:
            raise InputError(
                f"all {new_tokens} tokens arrived at once, {_TRIES} times: it, or a proxy in front "
                "of it, does not stream",
                where="engine=endpoint",
            )
        self._last = answer
        begin, (first, *_), last = answer.begin_ns, answer.arrivals_ns, answer.arrivals_ns[-1]
        phases.window("prefill", begin, first)
        if new_tokens > 1:
            phases.window("decode", first, last)
        return Generation(
            tuple((at_ns - begin) / 1e9 for at_ns in answer.arrivals_ns),
            answer.text,
            answer.own,
        )

    def service(self) -> Service:
        body = self._request([], 1)
        for varies in ("prompt", "max_tokens", "min_tokens"):
            body.pop(varies, None)
        goes_on, salt = {}, None
        if self._takes_options:
            goes_on = {"cache_prompt": True}
            if self._may_reuse:
                body |= goes_on
                del body["cache_salt"]
            else:
                salt = "cache_salt"
        server, options = self._server, self._identity["engine"]
        body |= {"model": server.model, "stream": True}
        return Service(
            server.completions_url,
            body,
            options["key_variable"],
            goes_on,
            salt,
            server.metrics_url,
        )

    def footprint(self) -> Footprint | str:
        return "the server's weights cannot be seen from here"

    def tokenizer(self) -> Tokenizer | str:
        if not self._reads_text:
            return "the server has no /tokenize to read a text with"
        plain, full = self._encode(_PROBE), self._encode(_PROBE, special=True)
        return Tokenizer(self._encode, begin_of_text(plain, full))

    def next_logprobs(self, ids: Sequence[int], targets: Sequence[int]) -> NextLogprobs:
        if self._scores_by == "next tokens":
            count = min(TOP, self.vocabulary)
            return along(self._server.next_logprobs, ids, targets, count, self.vocabulary)
        sequence = [*ids, targets[-1]]
        asked = {"prompt": sequence, "max_tokens": 1, "prompt_logprobs": _TOP_OF_PROMPT}
        rows = prompt_logprobs(self._server.complete({**asked, **self._options(1)})) or []
        if len(rows) != len(sequence) - 1:
            raise Mismatch(f"log-probabilities of {len(rows)} of {len(sequence) - 1} tokens came")
        return NextLogprobs.of_rows(rows[-len(targets) :], targets, _TOP_OF_PROMPT)

    def continuation(
        self, ids: Sequence[int], most: int, until: Sequence[str], tokenizer: Tokenizer
    ) -> str:
        asked: dict[str, Any] = {"prompt": list(ids), "max_tokens": most, "temperature": 0.0}
        # It may end sooner for these; all of them are looked for here.
        if stops := list(filter(None, until))[:_MOST_STOPS]:
            asked["stop"] = stops
        return cut_before(text_of(self._server.complete(asked)), until)

    def prove(self, prompt: Prompt, new_tokens: int, recorder: Recorder) -> None:
        if self._last is not None:
            recorder.fact("tokens_counted_by", self._last.counted_by)
            asked = "a prompt that was sent before takes as long as a new one"
            self._reuse(prompt[0]).record(recorder, "no prefix reuse", asked)
        if self._scores_by == "next tokens":
            prove(self._server, prompt[0], self.vocabulary, recorder)

    def _probe(self) -> str | None:
        """Whether the server takes our options, and how it gives log-probabilities; None: not."""
        asked = {"prompt": list(self.ordinary_ids[:4]), "max_tokens": 1, "temperature": 0.0}
        scored = {"logprobs": 1, "prompt_logprobs": _TOP_OF_PROMPT}
        answer = self._server.try_complete({**asked, **scored, **self._options(1)})
        if answer is None:
            self._takes_options = False
            self._server.complete(asked)
            return None
        if prompt_logprobs(answer):
            return "prompt"
        return "next tokens" if likeliest_next(answer) else None

    def _options(self, new_tokens: int) -> dict[str, Any]:
        """What only some servers know: fixed lengths, and nothing of an earlier prompt."""
        if not self._takes_options:
            return {}
        return {
            "ignore_eos": True,
            "min_tokens": new_tokens,
            "cache_prompt": False,  # llama.cpp
            "cache_salt": uuid.uuid4().hex,  # vLLM: an earlier prompt had another
        }

    def _request(self, ids: Sequence[int], new_tokens: int) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "prompt": list(ids),
            "max_tokens": new_tokens,
            "temperature": 0.0,
            "stream_options": {"include_usage": True},
        }
        if self._takes_options:
            # How many tokens a chunk has: vLLM and SGLang by the one, llama.cpp by the other.
            asked["stream_options"]["continuous_usage_stats"] = True
            asked["timings_per_token"] = True
        return {**asked, **self._options(new_tokens)}

    def _encode(self, text: str, *, special: bool = False) -> list[int]:
        found = self._server.tokenize(text, special=special)
        if found is None:
            raise InputError("the server no longer tokenizes", where="engine=endpoint")
        return found

    def _reuse(self, ids: Sequence[int]) -> Finding:
        """Whether what was sent before is answered out of a cache."""
        assert self._last is not None
        if (cached := self._last.cached_tokens) is not None:
            return Finding(
                FAILED if cached else PROVEN, f"{cached} tokens of the last from a cache"
            )
        again_s, new_s = [], []
        for turn in range(1, _PAIRS + 1):
            again_s.append(self.generate([ids], 1).ttft_s)
            new_s.append(self.generate([[*ids[turn:], *ids[:turn]]], 1).ttft_s)
        ratio = statistics.median(new_s) / statistics.median(again_s)
        got = f"by time, a new one takes {ratio:.2f} times as long"
        # Each of the new ones: what only some of them take is another's load.
        reused = min(new_s) > _REUSED * max(again_s) and min(new_s) - max(again_s) > _LEAST_S
        return Finding(FAILED if reused else UNDECIDED, got)


def _require_counts(answer: Completion, prompt_tokens: int, new_tokens: int) -> None:
    """:class:`InputError` where it is not the work that was asked for."""
    got, fix = len(answer.arrivals_ns), None
    what = fault_of(answer, prompt_tokens, new_tokens)
    if what is None and got != new_tokens:
        ended = f" (finish_reason: {answer.ended})" if answer.ended else ""
        what = f"it gave {got} tokens, not the {new_tokens} asked for{ended}"
        fix = "Use a server that takes ignore_eos, as vLLM's does"
    if what is not None:
        raise InputError(what, where="engine=endpoint", fix=fix)


def _vocabulary_of(model: Mapping[str, Any]) -> int | None:
    """As the configuration says it of a model whose server does not tokenize."""
    config = model.get("architecture") or {}
    if model["source"] == "path":
        try:
            config = json.loads((model_path(model) / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"no configuration: {error}", where="model.path") from error
    size = config.get("vocab_size")
    return None if size is None else int(size)


def _prepare(identity: Identity, recorder: Recorder) -> Model:
    options = identity["engine"]
    with recorder.phase("prepare", measured=False):
        key = key_of(options["key_variable"])
        server = Endpoint(options["url"], key, recorder.clock.now_ns)
        listed = server.models()
        wanted = options["model"]
        names = {each["id"]: {each["id"], *each.get("aliases", ())} for each in listed or ()}
        found = [each for each in listed or () if wanted is None or wanted in names[each["id"]]]
        server.model = wanted or (found[0]["id"] if len(found) == 1 else None)
        if server.model is None or (listed and not found):
            raise InputError(
                f"the server has {'no such model' if wanted else 'not exactly one model'}",
                where=f"engine.model={wanted}",
                fix=f"It lists {', '.join(names) or 'none'}",
            )
    return EndpointModel(server, found[0] if found else {}, identity, recorder.clock)


def _check(identity: Identity, work: Work) -> str | None:
    options = identity["engine"]
    if not options["url"]:
        fix = "Write engine.url=http://HOST:PORT/v1"
        raise ConfigError("is not given", where="engine.url", fix=fix)
    _check_url(str(options["url"]))
    variable = options["key_variable"]
    # What is wrong is not shown: it may be the key itself.
    if variable is not None and not (_VARIABLE.fullmatch(variable) and is_secret(variable)):
        raise ConfigError(
            "is not the name of a variable for secrets, so its value could not be kept out of logs",
            where="engine.key_variable",
            fix="Name it so that it ends in _KEY or _TOKEN; never write the key itself",
        )
    if identity["device"]["kind"] != "cpu":
        return "an endpoint needs no GPU of this machine: device=cpu"
    if work.batch_size > 1 and not work.served:
        return f"endpoint generates one sequence, not task.batch_size={work.batch_size}"
    return None


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or url.split() != [url] or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "is no address of a server, without password and query",
            where="engine.url",
            fix="Write engine.url=http://HOST:PORT/v1, and engine.key_variable=NAME for a key",
        )


def _secrets(identity: Identity) -> tuple[str, ...]:
    variable = identity["engine"]["key_variable"]
    return () if variable is None else (variable,)


ENGINE = Engine(
    name="endpoint",
    config=EndpointConfig,
    formats=("source",),
    prepare=_prepare,
    check=_check,
    packages=lambda identity: (),
    preload=("numpy",),
    serves=True,
    remote=True,
    secrets=_secrets,
)
