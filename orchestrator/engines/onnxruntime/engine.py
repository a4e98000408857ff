"""``engine=onnxruntime``: ONNX Runtime GenAI on the CPU, in the environment of that name."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.content import content_of
from orchestrator.engines.digest import digest_json
from orchestrator.engines.logit_proofs import prove_by_logits
from orchestrator.engines.onnxruntime.make import ABOUT, PRECISIONS
from orchestrator.engines.port import (
    Engine,
    Footprint,
    Generation,
    Model,
    NextLogprobs,
    Prompt,
    Session,
    Work,
    has_package,
)
from orchestrator.engines.separate import own_version, run_module
from orchestrator.engines.source import find_problem
from orchestrator.engines.tokenizer import Tokenizer
from orchestrator.errors import one_line
from orchestrator.host.cpu import usable_cores
from orchestrator.measure import HostMemory, Identity, Recorder
from orchestrator.measure.phase_memory import PhaseMemory
from orchestrator.measure.sampling import Phases, no_phase
from orchestrator.measure.wording import format_name

if TYPE_CHECKING:
    import numpy as np

_PACKAGE = "onnxruntime-genai"
# Part of the cache key: raise it when the same model would come out differently.
_VERSION = 5
# Products of eight-bit integers where the weights have four.
_ROUNDING = {"fp32": 2e-5, "int4wo": 3e-2}


@dataclass
class OnnxRuntimeConfig:
    """Options of ``engine=onnxruntime``: none of its own."""

    name: str = "onnxruntime"


class OnnxRuntimeModel(Model):
    """A directory as ONNX Runtime's builder writes it."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        self.about = json.loads((directory / ABOUT).read_text())
        self.directory = directory
        self.identity = identity
        self.files = sorted(directory.glob("model.onnx*"))
        self.context_tokens = self.about["context_tokens"]

    def load(self, work: Work) -> OnnxRuntimeSession:
        import onnxruntime_genai

        threads = self.identity["device"]["threads"] or len(usable_cores())
        config = onnxruntime_genai.Config(str(self.directory))
        options = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        return OnnxRuntimeSession(onnxruntime_genai.Model(config), self, work.depth)


class OnnxRuntimeSession(Session):
    """A loaded model; each generation has a cache of its own."""

    def __init__(self, model: Any, prepared: OnnxRuntimeModel, depth: int) -> None:
        self._model = model
        self._prepared = prepared
        self._depth = depth
        self._held = 0
        self._format = format_name(prepared.identity["quant"])
        self.vocabulary = prepared.about["vocabulary"]
        self.ordinary_ids = prepared.about["ordinary_ids"]
        self.context_tokens = prepared.context_tokens
        self.memory = PhaseMemory(HostMemory())

    def ready(self, recorder: Recorder) -> None:
        quant, found = self._prepared.identity["quant"], self._prepared.about["quantized"]
        asked = [[4, quant["group_size"]]] if self._format == "int4wo" else []
        recorder.engaged(
            "format",
            f"{self._format}{f' in groups of {asked[0][1]}' if asked else ''}",
            f"{found['count']} packed products {found['kinds']}",
            ok=found["kinds"] == asked,
        )

    def generate(self, prompt: Prompt, new_tokens: int, phases: Phases = no_phase) -> Generation:
        import numpy as np

        ids = np.array(prompt, np.int32)
        clock = time.perf_counter_ns
        arrivals: list[int] = []
        out: list[Any] = []
        generator = None
        if self._depth:
            generator = self._generator(len(prompt), ids.shape[1] + new_tokens)
            generator.append_tokens(ids[:, : self._depth])
            self._held = generator.token_count()
        with phases("prefill"):
            begin = clock()
            generator = generator or self._generator(len(prompt), ids.shape[1] + new_tokens)
            generator.append_tokens(ids[:, self._depth :])
            generator.generate_next_token()
            arrivals.append(clock())
        out.append(generator.get_next_tokens())
        gap = 0
        if new_tokens > 1:
            with phases("decode"):
                # What lies between the two phases is ours, not the engine's.
                gap = clock() - arrivals[0]
                for _ in range(new_tokens - 1):
                    generator.generate_next_token()
                    arrivals.append(clock())
                    out.append(generator.get_next_tokens())
        first, *later = arrivals
        return Generation(
            tuple((at - begin) / 1e9 for at in (first, *(each - gap for each in later))),
            tuple(tuple(map(int, row)) for row in zip(*out, strict=True)),
        )

    def footprint(self) -> Footprint:
        weights_bytes = sum(file.stat().st_size for file in self._prepared.files)
        return Footprint(weights_bytes, self._prepared.about["parameters"])

    def tokenizer(self) -> Tokenizer | str:
        import numpy as np
        import onnxruntime_genai

        about = self._prepared.about
        if about["tokenizer"] is not None:
            return str(about["tokenizer"])
        begin = about["begin_of_text"]
        try:
            tokenizer = onnxruntime_genai.Tokenizer(self._model)
        except RuntimeError as error:
            return f"ONNX Runtime cannot read the model's tokenizer: {one_line(error)}"

        def encode(text: str) -> list[int]:
            ids = [int(i) for i in tokenizer.encode(text)]
            return ids[len(begin) :] if begin and ids[: len(begin)] == begin else ids

        def decode(ids: Sequence[int]) -> str:
            return str(tokenizer.decode(np.array(ids, np.int32)))

        text, ids = about["probe"]
        if encode(text) != ids:
            return "ONNX Runtime's tokenizer splits a text otherwise than the model's own"
        start_id, end_ids = about["start_id"], tuple(about["end_ids"])
        return Tokenizer(encode, tuple(begin), None, start_id, decode, end_ids)

    def next_logprobs(self, ids: Sequence[int], targets: Sequence[int]) -> NextLogprobs:
        return NextLogprobs.of_logits(self._logits([list(ids)])[0][-len(targets) :], targets)

    def tokens_after(self, ids: Sequence[int], most: int) -> Generator[int, None, None]:
        import numpy as np

        generator = self._generator(1, len(ids) + most, ends=True)
        generator.append_tokens(np.array([ids], np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def prove(self, prompt: Prompt, new_tokens: int, recorder: Recorder) -> None:
        if self._depth:
            recorder.engaged("tokens in the cache before the prompt", self._depth, self._held)
        ids, rounding = list(prompt[0]), _ROUNDING[self._format]
        tail = len(ids) - self._depth if self._depth else 1
        prove_by_logits(self._logits, ids, rounding, recorder, tail=tail)

    def _generator(self, rows: int, tokens: int, *, ends: bool = False) -> Any:
        import onnxruntime_genai

        parameters = onnxruntime_genai.GeneratorParams(self._model)
        # As long as asked for, where it does not end: an end-of-text token is not chosen before.
        length = {"max_length": tokens, "min_length": 0 if ends else tokens}
        parameters.set_search_options(do_sample=False, batch_size=rows, **length)
        return onnxruntime_genai.Generator(self._model, parameters)

    def _logits(self, pieces: list[list[int]]) -> list[np.ndarray]:
        """Logits of each piece, (tokens, vocabulary): fed one after the other to one cache."""
        import numpy as np

        generator = self._generator(1, sum(map(len, pieces)) + 1)
        found = []
        for piece in pieces:
            generator.append_tokens(np.array([piece], np.int32))
            found.append(np.array(generator.get_output("logits"), np.float32)[0])
        return found


def _prepare(identity: Identity, recorder: Recorder) -> Model:
    quant = identity["quant"]
    with recorder.phase("prepare", measured=False):
        content = content_of(identity["model"])
        versions = {name: metadata.version(name) for name in (_PACKAGE, "onnx-ir")}
        versions["transformers"] = own_version("transformers")
        key = digest_json({"version": _VERSION, "of": content, "by": versions, "quant": quant})

        def build(target: Path) -> None:
            import onnxruntime_genai

            request = target.with_name("request.json")
            request.write_text(
                json.dumps(
                    {
                        "identity": identity,
                        "packages": str(Path(onnxruntime_genai.__file__).parents[1]),
                        "precision": PRECISIONS[format_name(quant)],
                        "group_size": quant["group_size"],
                    }
                )
            )
            run_module(
                "orchestrator.engines.onnxruntime.make",
                request,
                target,
                failed="ONNX Runtime's builder cannot make this model",
                where="engine=onnxruntime",
                fix="Its log says why; other engines may run it",
            )

        making = recorder.phase("convert", measured=False)
        directory = publish(cache_root() / "onnx" / key[:32], build, making=making)
    for name, digest in content.items():
        recorder.fact(f"{name.replace(' ', '_')}_digest", digest)
    return OnnxRuntimeModel(directory, identity)


def _check(identity: Identity, work: Work) -> str | None:
    if not has_package(identity, _PACKAGE):
        return f"{_PACKAGE} is not among its packages: use environment=onnxruntime"
    if identity["model"]["source"] == "random":
        return "onnxruntime builds from files: random weights have none"
    if problem := find_problem(identity["model"]):
        raise problem.as_config_error()
    if work.depth and work.batch_size > 1:
        return "onnxruntime appends to one sequence only: task.depth needs task.batch_size=1"
    if identity["device"]["kind"] != "cpu":
        return "onnxruntime is run on the CPU here: device=cpu"
    return None


ENGINE = Engine(
    name="onnxruntime",
    config=OnnxRuntimeConfig,
    formats=tuple(PRECISIONS),
    prepare=_prepare,
    check=_check,
    packages=lambda identity: (_PACKAGE, "onnxruntime"),
    preload=("numpy", "onnxruntime_genai"),
    takes_depth=True,
)
