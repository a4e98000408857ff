"""What a task may ask of an engine. A task names none: the engine that ``engine=`` chose answers.

::

    find_engine(name)     Engine     check, expect, packages: while planning, nothing is loaded
        prepare           Model      found, fetched, converted, checked
            load          Session    ready on its device
                generate  next_logprobs  prove

How to write one: ``docs/write-an-engine.md``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engines.digest import digest_text, ids_digest
from orchestrator.engines.text_windows import needed_context
from orchestrator.engines.tokenizer import Tokenizer, text_until
from orchestrator.measure import Identity, InputError, Recorder
from orchestrator.measure.sampling import Phases, no_phase

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.measure.phase_memory import PhaseMemory
    from orchestrator.model import Expectation

Prompt = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Work:
    """What a session is loaded for: engines make room for it beforehand.

    Attributes
    ----------
    batch_size : int
        Sequences generated together.
    tokens : int
        Of the longest one: depth, prompt and output.
    scored_tokens : int
        Of a text whose quality is measured; 0 for none.
    read_tokens : int
        Of the longest text that is read outside what is timed, with what is generated after it;
        cut to the model's context; 0 for none.
    named : str
        What a reader calls ``tokens``.
    depth : int
        Of each row of a prompt, the first ids that are in the cache before anything is timed.
    served : bool
        A server is wanted (:meth:`Session.service`) that takes ``batch_size`` sequences at once.
    reuse : bool
        What a prompt has in common with earlier ones may be taken from a cache.
    turns : int
        Of a served conversation: each may take from a cache what it has in common with those
        before it, whatever ``reuse`` says.
    """

    batch_size: int = 1
    tokens: int = 1
    scored_tokens: int = 0
    read_tokens: int = 0
    named: str = "prompt_tokens + new_tokens"
    depth: int = 0
    served: bool = False
    reuse: bool = False
    turns: int = 1

    def room_tokens(self, limit: int | None = None) -> int:
        """The longest sequence that is run. A text is cut to a model's context, ``limit``."""
        window = needed_context(self.scored_tokens) if self.scored_tokens else 0
        text = max(window, self.read_tokens)
        return max(self.tokens, text if limit is None else min(text, limit))


@dataclass(frozen=True)
class OwnTimings:
    """What an engine says itself of one generation, seconds."""

    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Generation:
    """One batch of sequences, greedy and of fixed length.

    Attributes
    ----------
    arrivals_s : tuple of float, shape (new_tokens,)
        When each token was out, since the call; of the whole batch at once. Tokens that came
        together share their time.
    output : tuple of tuple of int, shape (batch, new_tokens), or str
        Ids of each row; the text of all where the engine gives no ids.
    own : OwnTimings or None
        The engine's own, where it has any.
    """

    arrivals_s: tuple[float, ...]
    output: tuple[tuple[int, ...], ...] | str
    own: OwnTimings | None = None

    @property
    def digest(self) -> str:
        """Of what was generated: 16 hex digits."""
        if isinstance(self.output, str):
            return digest_text(self.output)[:16]
        return ids_digest([token for row in self.output for token in row])[:16]

    @property
    def ttft_s(self) -> float:
        """The prefill, the first token included."""
        return self.arrivals_s[0]

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self.arrivals_s[-1] - self.arrivals_s[0]

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """From each token to the next, (new_tokens - 1,); 0 between those that came together."""
        return tuple(later - earlier for earlier, later in pairwise(self.arrivals_s))

    @property
    def intervals_s(self) -> tuple[float, ...]:
        """Between consecutive tokens; an interval of several that came together is not there."""
        groups = [(at, len(list(tokens))) for at, tokens in groupby(self.arrivals_s)]
        return tuple(
            later - earlier for (earlier, _), (later, count) in pairwise(groups) if count == 1
        )

    @property
    def merged_tokens(self) -> int:
        """Tokens that came together with another."""
        return len(self.arrivals_s) - len(set(self.arrivals_s))


@dataclass(frozen=True)
class Footprint:
    """Size of a loaded model.

    Attributes
    ----------
    weights_bytes : int
        As they lie in memory, or in the engine's own file where it maps that.
    parameters : int
        Numbers the architecture has, however they are packed; tied ones once.
    quantized_parameters : int or None
        How many of them are held in a quantized format; None where the engine does not show it.
    """

    weights_bytes: int
    parameters: int
    quantized_parameters: int | None = None

    @property
    def bits_per_parameter(self) -> float:
        """Mean over the whole model, embeddings and norms included."""
        return 8 * self.weights_bytes / self.parameters


@dataclass(frozen=True)
class NextLogprobs:
    """What an engine says of the token that follows, at each position of a sequence.

    Attributes
    ----------
    targets : ndarray, shape (positions,), float64
        Log-probabilities of the tokens that did follow.
    top1 : ndarray, shape (positions,), int
        The likeliest tokens.
    logprobs : ndarray, shape (positions, k), float32
        Of the tokens ``ids``, over the whole vocabulary.
    ids : ndarray, shape (positions, k), int32, or None
        The likeliest tokens, likeliest first; None where ``logprobs`` has the whole vocabulary, in
        the order of ids.
    """

    targets: np.ndarray
    top1: np.ndarray
    logprobs: np.ndarray
    ids: np.ndarray | None = None

    @classmethod
    def of_logits(cls, logits: np.ndarray, targets: Sequence[int]) -> NextLogprobs:
        """From logits of the whole vocabulary, (positions, vocabulary); they are overwritten."""
        import numpy as np

        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)
        wanted = np.take_along_axis(logits, np.array(targets)[:, None], -1)[:, 0]
        return cls(wanted.astype(np.float64), logits.argmax(-1), logits)

    @classmethod
    def of_rows(
        cls, rows: Sequence[Mapping[int, float]], targets: Sequence[int], count: int
    ) -> NextLogprobs:
        """From log-probabilities by token, a row a position: the ``count`` likeliest are kept."""
        import numpy as np

        likeliest = [sorted(row.items(), key=lambda entry: -entry[1])[:count] for row in rows]
        ids = np.array([[token for token, _ in row] for row in likeliest], np.int32)
        return cls(
            np.array([row[target] for row, target in zip(rows, targets, strict=True)]),
            ids[:, 0],
            np.array([[value for _, value in row] for row in likeliest], np.float32),
            ids,
        )

    def likelihood(self, targets: Sequence[int]) -> tuple[float, bool]:
        """Sum of the targets' log-probabilities, and whether each is the likeliest there."""
        return float(self.targets.sum()), bool((self.top1 == list(targets)).all())


@dataclass(frozen=True)
class Service:
    """A server of OpenAI's completions API that runs.

    Attributes
    ----------
    url : str
        Of the completions.
    body : mapping
        What each request has besides prompt and ``max_tokens``: the model's name, fixed lengths,
        how tokens are counted, and whether what was read before may be used again.
    key_variable : str or None
        Names the variable that has the key.
    goes_on : mapping
        What later turns of a conversation have besides: that they may use what those before left.
    salt : str or None
        The field of a body that keeps what is read of it from all that have another value there;
        None where the server has none, or everything may be used by all.
    metrics_url : str or None
        Where it may export metrics of its own, in Prometheus's text format.
    """

    url: str
    body: Mapping[str, Any]
    key_variable: str | None = None
    goes_on: Mapping[str, Any] = field(default_factory=dict)
    salt: str | None = None
    metrics_url: str | None = None


class Session(ABC):
    """A loaded model.

    Attributes
    ----------
    vocabulary : int
        Rows of the embedding.
    ordinary_ids : sequence of int
        Tokens that are text: never one that would begin or end it.
    context_tokens : int or None
        The longest sequence; None where the model does not say.
    memory : PhaseMemory or str
        Takes the peaks of phases over what the weights hold; or a line why none can be taken.
    unscored : str or None
        A line why :meth:`next_logprobs` cannot be asked; None where it can.
    """

    vocabulary: int
    ordinary_ids: Sequence[int]
    context_tokens: int | None
    memory: PhaseMemory | str
    unscored: str | None = None

    @abstractmethod
    def ready(self, recorder: Recorder) -> None:
        """Prove that what was asked for was loaded; raises ``Mismatch``. Before any call."""

    @abstractmethod
    def generate(self, prompt: Prompt, new_tokens: int, phases: Phases = no_phase) -> Generation:
        """Generate exactly ``new_tokens`` for each row of ``prompt``, rows of one length.

        Greedy; an end-of-text token changes nothing; nothing is reused of an earlier call. Phases
        ``prefill`` and ``decode`` (none for one token) are marked outside what is timed. The first
        ``Work.depth`` ids of each row are in the cache before that, from now or from earlier.

        Raises
        ------
        InputError
            The model cannot run, or other numbers of tokens came than were asked for.
        """

    def settle(self, prompt: Prompt, new_tokens: int, recorder: Recorder) -> None:
        """Do what is done once for this work: compile, for example. After the first call."""
        return

    @abstractmethod
    def footprint(self) -> Footprint | str:
        """Measure the model as it lies now; or a line why that cannot be done."""

    @abstractmethod
    def tokenizer(self) -> Tokenizer | str:
        """The model's tokenizer, or a line why there is none."""

    @abstractmethod
    def next_logprobs(self, ids: Sequence[int], targets: Sequence[int]) -> NextLogprobs:
        """What follows the last ``len(targets)`` positions of ``ids``, each from all before it.

        The ids before these positions are context only.
        """

    def likelihood(self, ids: Sequence[int], targets: Sequence[int]) -> tuple[float, bool]:
        """Sum of the targets' log-probabilities, and whether each is the likeliest there.

        As by :meth:`next_logprobs`; an engine that can say it sooner does.
        """
        return self.next_logprobs(ids, targets).likelihood(targets)

    def tokens_after(self, ids: Sequence[int], most: int) -> Generator[int, None, None]:
        """Up to ``most`` greedy tokens that follow ``ids``: what is not taken need not be computed.

        Not timed; of any length that ``Work.read_tokens`` has room for, whatever ``Work.depth``.
        """
        output = self.generate([ids], most).output
        assert not isinstance(output, str), "an engine without ids has a `continuation` of its own"
        yield from output[0]

    def continuation(
        self, ids: Sequence[int], most: int, until: Sequence[str], tokenizer: Tokenizer
    ) -> str:
        """Greedy text after ``ids``: up to an end-of-text token, any of ``until``, ``most`` tokens.

        As by :meth:`tokens_after`; an engine that generates texts gives its own.
        """
        with closing(self.tokens_after(ids, most)) as tokens:
            return text_until(tokens, until, tokenizer)

    def service(self) -> Service:
        """The server that ``Work.served`` asked for."""
        raise NotImplementedError

    @abstractmethod
    def prove(self, prompt: Prompt, new_tokens: int, recorder: Recorder) -> None:
        """Prove how it behaved: causal, its cache one, its numbers numbers; raises ``Mismatch``.

        Parameters
        ----------
        new_tokens : int
            As they were timed; 0 for a session that only reads ``prompt``.
        """

    def close(self) -> None:
        """Give the memory back."""
        return


class Model(ABC):
    """A model found, fetched, converted and checked, but not loaded.

    Attributes
    ----------
    files : sequence of Path
        The weights as they will be read.
    context_tokens : int or None
        The longest sequence it was made for; None where it does not say.
    loaded : str or None
        A line why :meth:`load` loads nothing that could be timed; None where it does.
    """

    files: Sequence[Path]
    context_tokens: int | None
    loaded: str | None = None

    @abstractmethod
    def load(self, work: Work) -> Session:
        """Load it; what is timed as ``load_s``."""


@dataclass(frozen=True)
class Engine:
    """What runs a model, found by its registered name.

    The module that defines one must import in milliseconds, as a task's.

    Attributes
    ----------
    name : str
        ``engine=<name>``; others come through the entry-point group ``orchestrator.engines``.
    config : type
        Dataclass of ``engine.*``: what only this engine has. Its field ``name`` is the engine's.
    formats : tuple of str
        What it can make of ``quant=``: names of :func:`orchestrator.measure.wording.format_name`.
    prepare : callable
        ``prepare(identity, recorder)`` gives the :class:`Model`, in a phase ``prepare``. What is
        made once is kept under its content. Raises ``TaskError``s.
    check : callable
        ``check(identity, work)``: None, or one line why this cannot be done here, found without
        loading anything. :class:`ConfigError` for what has no sense on any machine.
    packages : callable
        ``packages(identity)``: names of the distributions that its numbers depend on.
    expect : callable
        As :attr:`orchestrator.measure.Task.expect`, of a generation.
    preload : tuple of str
        Modules that the fork server imports before it forks.
    in_torch : bool
        Whether its operators are torch's, which ``torch.profiler`` follows.
    takes_depth : bool
        Whether its sessions can read ``Work.depth`` before what is timed.
    serves : bool
        Whether its sessions can be servers (``Work.served``).
    remote : bool
        Whether the model runs on a machine that is not known: what was measured then is always
        measured again, unless ``reuse=hash``.
    secrets : callable
        As :attr:`orchestrator.measure.Task.secrets`.
    """

    name: str
    config: type
    formats: tuple[str, ...]
    prepare: Callable[[Identity, Recorder], Model]
    check: Callable[[Identity, Work], str | None]
    packages: Callable[[Identity], tuple[str, ...]]
    expect: Callable[[Identity, Mapping[str, Any] | None], Expectation | None] = field(
        default=lambda identity, config: None
    )
    preload: tuple[str, ...] = ()
    in_torch: bool = False
    takes_depth: bool = False
    serves: bool = False
    remote: bool = False
    secrets: Callable[[Identity], tuple[str, ...]] = lambda identity: ()


def has_package(identity: Identity, distribution: str) -> bool:
    """Whether the trial's environment has it; without one, whether it is installed here."""
    environment = identity["environment"]
    if environment is not None:
        return distribution in environment["packages"]
    return _is_installed(distribution)


@lru_cache(maxsize=64)
def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def require_context(limit: int | None, work: Work) -> None:
    """:class:`InputError` where the work is longer than the model's context.

    Planning asks the same of models whose context is known then.
    """
    if limit is not None and work.tokens > limit:
        raise InputError(
            f"{work.named} = {work.tokens}, more than the model's context of {limit}",
            where="task",
            fix="Shorten it",
        )
