"""engine=openvino in an environment of its own: built, proven and measured for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.engines.digest import ids_digest
from orchestrator.engines.gguf_files import GgufModel
from orchestrator.engines.gguf_tokens import tokens_of
from orchestrator.engines.openvino.engine import _expected_tokens, _pieces
from orchestrator.engines.separate import PYTHON_VARIABLE
from orchestrator.engines.source import packaged_file
from orchestrator.environments.build import built
from orchestrator.isolate.isolation import Isolation
from testing.checks import check_of
from testing.environments import environment
from testing.gguf import rewritten
from testing.trial import make_identity, run_attempt
from testing.written import ITEMS, answers_of, evaluated, words_task

ENVIRONMENT = "openvino"

check = check_of("inference")
pytestmark = pytest.mark.xdist_group("openvino")


def identity(model: Path, quant: str = "q8_0", **options: Any) -> dict[str, Any]:
    asked = make_identity(
        quant,
        engine="openvino",
        model={"source": "gguf", "path": str(model), "architecture": None},
        **{"prompt_tokens": 40, "new_tokens": 4, **options},
    )
    return {**asked, "environment": environment(ENVIRONMENT)}


@pytest.fixture
def converted(reads_bytes: Path, tmp_path: Path) -> Path:
    return converted_from(reads_bytes, tmp_path)


def converted_from(file: Path, place: Path, pre: str = "smollm") -> Path:
    """With what every file that llama.cpp converted says, and OpenVINO does not do without.

    Its logits are as far apart as those of a real model.
    """
    tokens = GgufModel(file).value("tokenizer.ggml.tokens")
    said = {
        "general.file_type": 0,
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens[:254], "ab", "<end>"],
        "tokenizer.ggml.token_type": [1] * 255 + [3],
    }
    norm = "output_norm.weight"
    tensors = {norm: [10.0] * 64}
    return rewritten(file, place / "converted.gguf", said, tensors, without=norm)


def test_a_tiny_model_is_measured_for_real(isolation: Isolation, converted: Path) -> None:
    report = run_attempt(isolation, identity(converted, batch_size=2))
    holds(report, "q8_0", "u8")


@pytest.mark.long
def test_its_logits_are_near_those_of_float32_over_the_same_tokens(
    isolation: Isolation, reads_bytes: Path, tmp_path: Path
) -> None:
    # llama.cpp begins a text of such a file, which OpenVINO does not; and of this much text
    # OpenVINO's tokenizer gives the end.
    file = converted_from(reads_bytes, tmp_path, "llama-bpe")
    report = run_attempt(isolation, identity(file, "q4_0", quality_tokens=300))
    holds(report, "q4_0", "u4")
    begin, (*_, text) = tokens_of(file)
    assert report.facts["quality_windows"]["begin_of_text"] == list(begin) == [0]
    assert report.facts["quality_tokens_digest"] == ids_digest(text[:301])
    metrics: Any = report.metrics
    assert 1e-6 < metrics["kl_to_reference"].value < 0.1
    assert metrics["perplexity"].value == pytest.approx(
        metrics["reference_perplexity"].value, rel=0.02
    )


def test_a_long_text_is_cut_before_words() -> None:
    text = "\n\n".join(["a word, 12 of 'them'\u00e9 " * 300, "x" * 5000, "\u6f22" * 3000])
    pieces = _pieces(text)
    assert "".join(pieces) == text
    assert all(piece[0] == " " and piece[1].isalpha() for piece in pieces[1:])
    assert all(len(piece.encode()) <= 4096 for piece in pieces[:-1])


@pytest.mark.long
def test_text_is_generated_for_an_evaluation(
    isolation: Isolation, writes_ascii: Path, tmp_path: Path
) -> None:
    model, task = converted_from(writes_ascii, tmp_path), words_task(tmp_path)
    # Its cache has eight bits, so other tokens may come; of each kind some stay.
    ours, plain = (
        answers_of(evaluated(isolation, asked, model, task))
        for asked in (identity(model, batch_size=2), make_identity(task="quality"))
    )
    assert sum(one == two for one, two in zip(ours, plain, strict=True)) > 0.5 * ITEMS
    assert len(set(ours)) > 4


def holds(report: AttemptReport, quant: str, held: str) -> None:
    assert report.outcome is Outcome.OK, report.reason
    facts = report.facts
    proofs = ("finite logits", "causal", "cache", "prefix", "timed")
    assert facts["proofs"] == dict.fromkeys(proofs, "proven")
    assert len(facts["output_digests"]) == 1
    assert facts["executed"]["inference_precision_hint"] == "f32"
    assert held in facts["executed"]["products"]
    got = {each.what: each.got for each in report.engaged}
    assert got["format"] == quant.upper()
    assert got["precision"] == "f32"
    assert got["constants"].endswith(f" of {held}")
    expected = {"ttft_s", "tpot_s", "itl_s", "load_s", "decode_over_own_timing"}
    assert expected <= report.metrics.keys()


# The engine, but for the setting that is proven: it is put back to what OpenVINO does by itself.
_REUSES = """
import json, sys
from pathlib import Path
import openvino_genai

class Reuses(openvino_genai.SchedulerConfig):
    def __setattr__(self, name, value):
        super().__setattr__(name, value or name == "enable_prefix_caching")

from orchestrator.engines.openvino.engine import ENGINE
from orchestrator.engines.port import Work
from orchestrator.measure import HostClock, Recorder

identity = json.loads(sys.argv[1])
model = ENGINE.prepare(identity, Recorder(lambda event: None, HostClock(), Path(sys.argv[2])))
found = [model.load(Work(tokens=44))._prefix([*range(40)])]
openvino_genai.SchedulerConfig = Reuses
found.append(model.load(Work(tokens=44))._prefix([*range(40)]))
print(json.dumps([[each.state, each.got] for each in found]))
"""


@pytest.mark.usefixtures("isolation")
def test_a_prefix_that_is_reused_is_found(converted: Path, tmp_path: Path) -> None:
    asked = identity(converted)
    python = built(asked["environment"])
    done = subprocess.run(
        [python, "-c", _REUSES, json.dumps(asked), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kept, reused = json.loads(done.stdout.splitlines()[-1])
    assert kept == ["proven", "2 and 2 steps for 257 tokens, 256 in one"]
    assert reused == ["failed", "2 and 1 steps for 257 tokens, 256 in one"]


@pytest.mark.usefixtures("isolation")
def test_an_environment_finds_the_packaged_model() -> None:
    asked = "from orchestrator.engines.source import packaged_file; print(packaged_file())"
    done = subprocess.run(
        [built(environment(ENVIRONMENT)), "-c", asked],
        cwd=Path(__file__).parents[2],
        env={**os.environ, PYTHON_VARIABLE: sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(packaged_file())


def test_what_it_cannot_do_is_infeasible(tiny_gguf: Path, tmp_path: Path) -> None:
    asked = identity(tiny_gguf)
    assert check(asked) is None
    assert "openvino has no q5_1; it has q8_0" in str(check(identity(tiny_gguf, "q5_1")))
    assert "use environment=openvino" in str(check({**asked, "environment": None}))
    random = {**asked, "model": make_identity()["model"]}
    assert "openvino runs GGUF files, not a random model" in str(check(random))
    gpu = {**asked, "device": {**asked["device"], "kind": "cuda"}}
    assert "device=cpu" in str(check(gpu))
    for part in (1, 2):
        (tmp_path / f"tiny-{part:05d}-of-00002.gguf").touch()
    assert "one file" in str(check(identity(tmp_path / "tiny-00001-of-00002.gguf")))


def test_a_file_that_llama_cpp_cannot_read_costs_the_text_alone(tmp_path: Path) -> None:
    file = tmp_path / "no.gguf"
    file.write_bytes(b"GGUF")
    assert "llama.cpp cannot tell how this file's tokenizer reads" in str(_expected_tokens(file))
