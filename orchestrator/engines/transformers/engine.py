"""``engine=transformers``: a model of Hugging Face transformers, run by torch."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.engines import transformers as loading
from orchestrator.engines.port import (
    Engine,
    Footprint,
    Generation,
    Model,
    NextLogprobs,
    Prompt,
    Session,
    Work,
)
from orchestrator.engines.tokenizer import Tokenizer
from orchestrator.engines.transformers.expected import expect_inference
from orchestrator.engines.transformers.feasible import (
    ATTENTIONS,
    FORMATS,
    check_attention,
    check_cache,
    check_compile,
    check_model,
    refuse_static_cache,
)
from orchestrator.engines.transformers.quantization import quantizer
from orchestrator.errors import one_line
from orchestrator.measure import Identity, OutOfMemory, Recorder, tracker
from orchestrator.measure.options import bounded, choice
from orchestrator.measure.phase_memory import PhaseMemory
from orchestrator.measure.sampling import Phases, no_phase

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from orchestrator.engines.transformers.compilation import CompileWatch
    from orchestrator.engines.transformers.generation import GreedyGenerator


@dataclass
class TransformersConfig:
    """Options of ``engine=transformers``.

    Attributes
    ----------
    attention : str
        ``sdpa``, ``eager``, ``flash_attention_2`` or ``flex_attention``.
    cache : str
        ``dynamic`` grows with the sequence; ``static`` has room for all of it from the start.
    compile : bool
        Run the model through ``torch.compile``; with a static cache the decode step only, as one
        graph.
    token_sleep_s : float
        Sleep inside every token interval: an injected slowdown, to prove that the gate finds one.
    """

    name: str = "transformers"
    attention: str = choice(*ATTENTIONS)
    cache: str = choice("dynamic", "static")
    compile: bool = False
    token_sleep_s: float = bounded(0.0, low=0)


class TransformersModel(Model):
    """A directory of safetensors, or an architecture with random weights."""

    def __init__(self, prepared: loading.Prepared, identity: Identity) -> None:
        self._prepared = prepared
        self._identity = identity
        self.files = prepared.files
        self.context_tokens = prepared.context_tokens

    def load(self, work: Work) -> TransformersSession:
        identity = self._identity
        with _device_memory():
            model = loading.load_unmeasured(
                self._prepared,
                identity["quant"],
                identity["device"],
                identity["seed"],
                attention=identity["engine"]["attention"],
                trust_remote_code=identity["model"]["trust_remote_code"],
            )
        return TransformersSession(model, self._prepared, identity, work)


class TransformersSession(Session):
    """A loaded transformers model, compiled where asked for."""

    def __init__(
        self,
        model: PreTrainedModel,
        prepared: loading.Prepared,
        identity: Identity,
        work: Work,
    ) -> None:
        from orchestrator.engines.transformers.tokens import ordinary_ids

        self._model = model
        self._prepared = prepared
        self._identity = identity
        self._depth = work.depth
        static = identity["engine"]["cache"] == "static"
        self._cache_tokens = work.tokens if static else None
        self._compiling: CompileWatch | None = None
        self._generator: GreedyGenerator | None = None
        self._untimed: GreedyGenerator | None = None
        self._prefill_s = 0.0
        self.vocabulary = int(prepared.config.get_text_config(decoder=True).vocab_size)
        self.ordinary_ids = ordinary_ids(prepared)
        self.context_tokens = prepared.context_tokens

    def ready(self, recorder: Recorder) -> None:
        from orchestrator.engines.transformers.compilation import CompileWatch
        from orchestrator.engines.transformers.generation import generator_for

        options = self._identity["engine"]
        if self._cache_tokens is not None:
            refuse_static_cache(self._model)
        loading.prove_loaded(
            self._model, self._prepared, self._identity, recorder, options["attention"]
        )
        if options["compile"]:
            self._compiling = CompileWatch(self._model, recorder)
        self._generator = generator_for(
            self._model,
            recorder.clock,
            forward=self._compiling.forward if self._compiling else None,
            cache_tokens=self._cache_tokens,
            token_sleep_s=options["token_sleep_s"],
        )
        # Of any length, which neither a graph nor a static cache is made for.
        self._untimed = generator_for(self._model, recorder.clock)
        self.memory = PhaseMemory(tracker(self._identity["device"]["kind"]))

    def generate(self, prompt: Prompt, new_tokens: int, phases: Phases = no_phase) -> Generation:
        import torch

        from orchestrator.engines.transformers.tokens import rows_of

        assert self._generator is not None, "ready() comes first"
        with torch.inference_mode(), loading.runs(self._prepared):
            ids = self._tensor(prompt)
            timing, tokens = self._generator.sequence(ids, new_tokens, phases, self._depth)
            self._prefill_s = timing.ttft_s
            arrivals = itertools.accumulate(timing.intervals_s, initial=timing.ttft_s)
            return Generation(tuple(arrivals), rows_of(tokens))

    def settle(self, prompt: Prompt, new_tokens: int, recorder: Recorder) -> None:
        if self._compiling is not None:
            with recorder.phase("compile", measured=False):
                self._compiling.settle(lambda: self.generate(prompt, new_tokens))

    def footprint(self) -> Footprint:
        from orchestrator.engines.transformers.footprint import footprint

        # bitsandbytes may repack the weights in the first call.
        return footprint(self._model)

    def tokenizer(self) -> Tokenizer | str:
        from orchestrator.engines.transformers.tokens import load_tokenizer

        trusted = bool(self._identity["model"]["trust_remote_code"])
        return load_tokenizer(self._prepared, trust_remote_code=trusted)

    def next_logprobs(self, ids: Sequence[int], targets: Sequence[int]) -> NextLogprobs:
        import torch

        known = inspect.signature(self._model.forward).parameters
        keep = {"logits_to_keep": len(targets)} if "logits_to_keep" in known else {}
        with torch.inference_mode(), _device_memory():
            output: Any = self._model(input_ids=self._tensor([ids]), use_cache=False, **keep)
            logprobs = torch.log_softmax(output.logits[0, -len(targets) :].float(), dim=-1)
            wanted = torch.tensor(targets, device=logprobs.device)[:, None]
            return NextLogprobs(
                logprobs.gather(1, wanted)[:, 0].double().cpu().numpy(),
                logprobs.argmax(-1).cpu().numpy(),
                logprobs.cpu().numpy(),
            )

    def tokens_after(self, ids: Sequence[int], most: int) -> Generator[int, None, None]:
        import torch

        assert self._untimed is not None, "ready() comes first"
        past, fed = None, self._tensor([ids])
        for _ in range(most):
            with torch.inference_mode(), loading.runs(self._prepared), _device_memory():
                if past is None:
                    past, logits = self._untimed.begin(fed)
                else:
                    logits = self._untimed.step(fed, past)
                fed = logits.argmax(-1, keepdim=True)
            yield int(fed)

    def prove(self, prompt: Prompt, new_tokens: int, recorder: Recorder) -> None:
        import torch

        from orchestrator.engines.transformers import proofs

        assert self._generator is not None, "ready() comes first"
        quant = self._prepared.quant_in_memory(self._identity["quant"])
        if self._compiling is not None and new_tokens:
            self._compiling.record(recorder, one_graph=self._cache_tokens is not None)
        with torch.inference_mode():
            ids = self._tensor(prompt)
            if not new_tokens:
                rounding = proofs.rounding_of(quant, self._model.config)
                proofs.prove_causal(self._model, ids[0], recorder, rounding)
                return
            proofs.prove(
                self._model,
                self._generator,
                ids,
                recorder,
                quant=quant,
                new_tokens=new_tokens,
                prefill_s=self._prefill_s,
                depth=self._depth,
                fixed_shape=self._compiling is not None and self._cache_tokens is None,
            )

    def _tensor(self, prompt: Prompt) -> torch.Tensor:
        import torch

        return torch.tensor(prompt).to(self._model.device)


@contextmanager
def _device_memory() -> Iterator[None]:
    """torch's out of memory, as the port tells it."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(one_line(error), where="device=cuda", device=True) from error


def _prepare(identity: Identity, recorder: Recorder) -> Model:
    return TransformersModel(loading.prepare(identity, recorder), identity)


def _check(identity: Identity, work: Work) -> str | None:
    options = identity["engine"]
    return (
        check_model(identity)
        or check_attention(identity, options["attention"])
        or check_compile(identity, options["compile"])
        or check_cache(identity, options["cache"], options["compile"])
    )


def _packages(identity: Mapping[str, Any]) -> tuple[str, ...]:
    by = quantizer(identity["quant"])
    return ("torch", "transformers", *([by] if by else []))


ENGINE = Engine(
    name="transformers",
    config=TransformersConfig,
    formats=FORMATS,
    prepare=_prepare,
    check=_check,
    packages=_packages,
    expect=expect_inference,
    preload=loading.PRELOAD,
    in_torch=True,
    takes_depth=True,
)
