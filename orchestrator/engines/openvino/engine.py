"""``engine=openvino``: OpenVINO GenAI on the CPU, in the environment of that name.

The pipeline that is timed reads the GGUF file itself::

    generate        its pipeline: paged attention, the whole prompt in one step, a step a token
    _logits         the same model and settings in a request of OpenVINO's own, which gives logits
                    of every position: quality and proofs
    proof "timed"   what the pipeline says of its own tokens is what these logits say
"""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engines import gguf_formats
from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.digest import digest_json
from orchestrator.engines.gguf_files import gguf_files, split_of
from orchestrator.engines.gguf_tokens import probes, read_by_llamacpp
from orchestrator.engines.logit_proofs import prove_by_logits
from orchestrator.engines.port import (
    Engine,
    Footprint,
    Generation,
    Model,
    NextLogprobs,
    OwnTimings,
    Prompt,
    Session,
    Work,
    has_package,
)
from orchestrator.engines.proof import CACHE_SHARE, FAILED, PROVEN, Finding, judge_cache
from orchestrator.engines.separate import run_forked
from orchestrator.engines.source import model_path
from orchestrator.engines.tokenizer import Tokenizer
from orchestrator.host.cpu import usable_cores
from orchestrator.measure import HostMemory, Identity, Infeasible, InputError, Mismatch, Recorder
from orchestrator.measure.options import choice
from orchestrator.measure.phase_memory import PhaseMemory
from orchestrator.measure.sampling import Phases, no_phase
from orchestrator.measure.wording import format_name

if TYPE_CHECKING:
    import numpy as np

_PACKAGE = "openvino-genai"
# Part of the cache key: raise it when the same model would come out differently.
_VERSION = 2
_FAMILIES = ("llama", "qwen2", "qwen3")
# What most values of its constants are, for each format that it reads and is written here.
_HELD = {"q8_0": "u8", "q4_1": "u4", "q4_0": "u4"}
# Keys and values in eight bits, products of eight-bit integers.
_ROUNDING = 5e-2
_IR, _ABOUT, _TOKENS = "openvino_model.xml", "about.json", "tokens.json"
_LEAST_STEP_TOKENS = 256
# Of a longer text its tokenizer gives these, and drops what is before them, whatever it is told.
_LAST_TOKENS = 8192
_BEFORE_A_WORD = re.compile(r"(?<=\w)(?= [^\W\d_])")
_PROVEN_TOKENS, _PROVEN_NEW = 16, 8


@dataclass
class OpenVinoConfig:
    """Options of ``engine=openvino``.

    Attributes
    ----------
    precision : str
        What OpenVINO computes in: ``f32`` or ``bf16``. Its own choice would depend on the machine.
    """

    name: str = "openvino"
    precision: str = choice("f32", "bf16", default="f32")


class OpenVinoModel(Model):
    """A GGUF file, and OpenVINO's own form of it in ``directory``."""

    def __init__(self, identity: Identity, found: gguf_formats.Prepared, directory: Path) -> None:
        self.identity = identity
        self.contents = found.contents
        self.directory = directory
        self.files = gguf_files(found.file)
        self.context_tokens = found.contents.context_tokens

    @property
    def properties(self) -> dict[str, Any]:
        """What OpenVINO is told of the device, for the pipeline and for logits."""
        threads = self.identity["device"]["threads"] or len(usable_cores())
        precision = self.identity["engine"]["precision"]
        return {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}

    def load(self, work: Work) -> OpenVinoSession:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        # Else a repeated prompt would be taken from the last call.
        scheduler.enable_prefix_caching = False
        # As its pipeline for one user has it: a prompt is not cut into pieces.
        scheduler.max_num_batched_tokens = max(_LEAST_STEP_TOKENS, work.batch_size * work.tokens)
        pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(self.files[0]), scheduler, "CPU", self.properties
        )
        return OpenVinoSession(pipeline, self, scheduler.max_num_batched_tokens)


class OpenVinoSession(Session):
    """A loaded pipeline; each generation has a cache of its own."""

    def __init__(self, pipeline: Any, model: OpenVinoModel, step_tokens: int) -> None:
        self._pipeline = pipeline
        self._model = model
        self._step_tokens = step_tokens
        self._request_ids = itertools.count()
        self._format = format_name(model.identity["quant"])
        self.vocabulary = model.contents.vocabulary
        self.ordinary_ids = model.contents.ordinary_ids
        self.context_tokens = model.context_tokens
        self.memory = PhaseMemory(HostMemory())

    def ready(self, recorder: Recorder) -> None:
        import openvino

        core = openvino.Core()
        core.set_property("CPU", self._model.properties)
        asked = self._model.properties["INFERENCE_PRECISION_HINT"]
        took = core.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
        recorder.engaged("precision", asked, took)
        recorder.fact("threads", core.get_property("CPU", "INFERENCE_NUM_THREADS"))
        held = json.loads((self._model.directory / _ABOUT).read_text())
        recorder.fact("constants", held)
        if (kind := _HELD.get(self._format)) is not None:
            most = max(held, key=held.__getitem__)
            recorder.engaged("constants", kind, f"{held[most]} of {most}", ok=most == kind)

    def generate(self, prompt: Prompt, new_tokens: int, phases: Phases = no_phase) -> Generation:
        config = _greedy(new_tokens)
        clock = time.perf_counter_ns
        arrivals: list[int] = []
        out: list[list[int]] = []
        with phases("prefill"):
            begin = clock()
            handles = [self._add(row, config) for row in prompt]
            self._pipeline.step()
            arrivals.append(clock())
        out.append(_one_each(handles))
        gap = 0
        if new_tokens > 1:
            with phases("decode"):
                # What lies between the two phases is ours; the engine's own clock runs on.
                gap = clock() - arrivals[0]
                for _ in range(new_tokens - 1):
                    self._pipeline.step()
                    arrivals.append(clock())
                    out.append(_one_each(handles))
        if self._pipeline.has_non_finished_requests():
            raise Mismatch(f"OpenVINO goes on after {new_tokens} tokens")
        first, *later = arrivals
        own = handles[0].get_perf_metrics()
        own_decode_s = own.get_tpot().mean * (new_tokens - 1) / 1e3 - gap / 1e9
        return Generation(
            tuple((at - begin) / 1e9 for at in (first, *(each - gap for each in later))),
            tuple(zip(*out, strict=True)),
            OwnTimings(own.get_ttft().mean / 1e3, own_decode_s),
        )

    def footprint(self) -> Footprint:
        weights = (self._model.directory / _IR).with_suffix(".bin")
        return Footprint(weights.stat().st_size, self._model.contents.parameters)

    def tokenizer(self) -> Tokenizer | str:
        tokenizer = self._pipeline.get_tokenizer()

        def encode(text: str) -> list[int]:
            ids: list[int] = []
            for piece in _pieces(text):
                found = tokenizer.encode(piece, add_special_tokens=False).input_ids.data[0]
                if len(found) == _LAST_TOKENS:
                    raise InputError(
                        f"OpenVINO reads the last {_LAST_TOKENS} tokens only of so much text "
                        "without a blank",
                        where="engine=openvino",
                        fix="Give another text",
                    )
                ids += [int(i) for i in found]
            return ids

        def decode(ids: Sequence[int]) -> str:
            return str(tokenizer.decode(list(ids)))

        # What stands before a text it leaves out, whatever the file says.
        kept = json.loads((self._model.directory / _TOKENS).read_text())
        if isinstance(kept, str):
            return kept
        begin, expected = kept
        if [encode(text) for text in probes()] != expected:
            return "OpenVINO's tokenizer splits a text otherwise than llama.cpp does"
        contents = self._model.contents
        return Tokenizer(encode, tuple(begin), None, contents.start_id, decode, contents.end_ids)

    def next_logprobs(self, ids: Sequence[int], targets: Sequence[int]) -> NextLogprobs:
        return NextLogprobs.of_logits(self._logits([list(ids)])[0][-len(targets) :], targets)

    def tokens_after(self, ids: Sequence[int], most: int) -> Generator[int, None, None]:
        handle = self._add(ids, _greedy(most))
        try:
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()
                if handle.can_read():
                    for output in handle.read().values():
                        yield from output.generated_ids
        finally:
            handle.cancel()
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()

    def prove(self, prompt: Prompt, new_tokens: int, recorder: Recorder) -> None:
        ids = list(prompt[0])
        recorder.fact("executed", self._executed())
        others = {
            "prefix": (
                self._prefix(ids),
                "a repeated prompt is computed again: as many steps as it takes",
            ),
            "timed": (
                self._timed(ids[:_PROVEN_TOKENS]),
                "the pipeline's log-probabilities of its tokens, error up to "
                f"{CACHE_SHARE:g} of that without context",
            ),
        }
        prove_by_logits(self._logits, ids, _ROUNDING, recorder, others=others)

    def _prefix(self, ids: list[int]) -> Finding:
        """One token more than a step takes: two steps, unless some are remembered."""
        tokens = self._step_tokens + 1
        fed = list(itertools.islice(itertools.cycle(ids), tokens))
        steps: list[int] = []
        for _ in range(2):
            handle = self._add(fed, _greedy(1))
            steps.append(0)
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()
                steps[-1] += 1
            handle.read()  # a request without a handle is dropped
        got = f"{steps[0]} and {steps[1]} steps for {tokens} tokens, {self._step_tokens} in one"
        return Finding(PROVEN if steps == [2, 2] else FAILED, got)

    def _timed(self, ids: list[int]) -> Finding:
        """What the pipeline says of a prompt and of what it makes of it, by its own cache."""
        import numpy as np

        config = _greedy(_PROVEN_NEW)
        config.logprobs, config.echo = 1, True
        handle = self._add(ids, config)
        fed: list[int] = []
        said: list[float] = []
        for _ in range(_PROVEN_NEW):
            self._pipeline.step()
            for output in handle.read().values():
                fed += output.generated_ids
                said += output.generated_log_probs
        whole = self.next_logprobs(fed[:-1], fed[1:]).targets
        pairs = itertools.pairwise(fed)
        alone = np.array([self.next_logprobs([one], [two]).targets[0] for one, two in pairs])
        found = np.array(said[1:])  # of the first token there is none
        errors = (found - whole, alone - whole, alone - found, whole - whole.mean())
        error, control, between, spread = (float(np.sqrt(np.square(e).mean())) for e in errors)
        return judge_cache(error, control, between, spread, _ROUNDING, tokens=len(fed))

    def _add(self, ids: Sequence[int], config: Any) -> Any:
        import numpy as np
        import openvino

        tensor = openvino.Tensor(np.array([ids], np.int64))
        return self._pipeline.add_request(next(self._request_ids), tensor, config)

    @cached_property
    def _compiled(self) -> Any:
        import openvino

        core = openvino.Core()
        file = str(self._model.directory / _IR)
        return core.compile_model(core.read_model(file), "CPU", self._model.properties)

    def _executed(self) -> dict[str, Any]:
        """What OpenVINO made of the settings, and what it multiplies by."""
        nodes = [node.get_rt_info() for node in self._compiled.get_runtime_model().get_ops()]
        products = Counter(
            str(info["runtimePrecision"].astype(str))
            for info in nodes
            if info["layerType"].astype(str) == "FullyConnected"
        )
        asked = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION")
        kinds = {name.lower(): self._compiled.get_property(name).to_string() for name in asked}
        group = self._compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")
        return {**kinds, "dynamic_quantization_group_size": group, "products": dict(products)}

    def _logits(self, pieces: list[list[int]]) -> list[np.ndarray]:
        """Logits of each piece, (tokens, vocabulary): fed one after the other to one cache."""
        import numpy as np

        request = self._compiled.create_infer_request()
        found: list[np.ndarray] = []
        seen = 0
        for piece in pieces:
            total = seen + len(piece)
            request.infer(
                {
                    "input_ids": np.array([piece], np.int64),
                    "attention_mask": np.ones((1, total), np.int64),
                    "position_ids": np.arange(seen, total)[None],
                    "beam_idx": np.zeros(1, np.int32),
                }
            )
            found.append(np.array(request.get_tensor("logits").data, np.float32)[0])
            seen = total
        return found


def _expected_tokens(file: Path) -> object:
    """As llama.cpp reads, or a line why that is not known: only a text needs it."""
    try:
        return read_by_llamacpp(file)
    except InputError as error:
        return str(error)


def _pieces(text: str) -> list[str]:
    """A text cut before words, where every splitting of bytes that OpenVINO has cuts it, too."""
    pieces = [""]
    for word in _BEFORE_A_WORD.split(text):
        if len((pieces[-1] + word).encode()) > _LAST_TOKENS // 2:
            pieces.append("")
        pieces[-1] += word
    return pieces


def _greedy(new_tokens: int) -> Any:
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


def _one_each(handles: Sequence[Any]) -> list[int]:
    found = [
        output.generated_ids
        for handle in handles
        if handle.can_read()
        for output in handle.read().values()
    ]
    if [len(ids) for ids in found] != [1] * len(handles):
        raise Mismatch(f"OpenVINO gave {found} in one step of {len(handles)} sequences")
    return [ids[0] for ids in found]


def _prepare(identity: Identity, recorder: Recorder) -> Model:
    with recorder.phase("prepare", measured=False):
        found = gguf_formats.prepare(identity, recorder)
        if found.contents.architecture not in _FAMILIES:
            raise Infeasible(
                f"OpenVINO reads no GGUF file of {found.contents.architecture}",
                where="model",
                fix=f"It reads {', '.join(_FAMILIES)}; engine=llamacpp reads more",
            )
        versions = {name: metadata.version(name) for name in (_PACKAGE, "openvino")}
        of = {"source": found.digest, "format": found.file.name if found.made else None}
        key = digest_json({"version": _VERSION, "of": of, "by": versions})

        def build(target: Path) -> None:
            run_forked(
                _build,
                found.file,
                target,
                failed="OpenVINO cannot load this file",
                where=str(found.file),
                fix="Try the file on engine=llamacpp, or another format: quant=q8_0",
            )
            (target / _TOKENS).write_text(json.dumps(_expected_tokens(found.file)))

        making = recorder.phase("convert", measured=False)
        directory = publish(cache_root() / "openvino" / key[:32], build, making=making)
    return OpenVinoModel(identity, found, directory)


def _build(file: Path, target: Path) -> None:
    """Write what OpenVINO reads of a GGUF file to ``target``: in a process of its own."""
    import openvino
    import openvino_genai

    target.mkdir()
    link = target / "model.gguf"  # it writes next to the file that it reads
    link.symlink_to(file.absolute())
    openvino_genai.LLMPipeline(
        str(link), "CPU", enable_save_ov_model=True, ATTENTION_BACKEND="SDPA"
    )
    link.unlink()
    operations = openvino.Core().read_model(str(target / _IR)).get_ops()
    values: Counter[str] = Counter()
    for node in operations:
        if node.get_type_name() == "Constant":
            kind = node.get_element_type().to_string()
            values[kind] += math.prod(node.get_output_shape(0))
    (target / _ABOUT).write_text(json.dumps(values))


def _check(identity: Identity, work: Work) -> str | None:
    if not has_package(identity, _PACKAGE):
        return f"{_PACKAGE} is not among its packages: use environment=openvino"
    if reason := gguf_formats.check_source(identity, "openvino"):
        return reason
    if identity["model"]["source"] == "gguf" and split_of(model_path(identity["model"])):
        return "openvino reads a GGUF model of one file: merge it, or use engine=llamacpp"
    if identity["device"]["kind"] != "cpu":
        return "openvino is run on the CPU here: device=cpu"
    return None


ENGINE = Engine(
    name="openvino",
    config=OpenVinoConfig,
    formats=(*_HELD, gguf_formats.SOURCE),
    prepare=_prepare,
    check=_check,
    packages=lambda identity: (_PACKAGE, "openvino"),
    preload=("numpy", "gguf", "openvino_genai"),
)
