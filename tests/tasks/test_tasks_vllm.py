"""engine=vllm in an environment of its own, on the packaged model: measured, proven, and gone.

What it does on CUDA is planned here, and checked by ``make test-gpu`` where there is a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.engines.transformers import Prepared
from orchestrator.engines.vllm import engine
from orchestrator.engines.vllm.engine import ENGINE
from orchestrator.errors import Infeasible
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import HostClock, Recorder
from testing.checks import check_of
from testing.environments import environment
from testing.trial import make_identity, run_attempt
from testing.waiting import until
from testing.written import WORDS, answers_of, evaluated, words_task

ENVIRONMENT = "vllm_cpu"

check = check_of("inference")
PACKAGED = {"source": "packaged", "id": "smollm2_135m", "architecture": None}


def identity(quant: str = "bf16", **options: Any) -> dict[str, Any]:
    work = {"prompt_tokens": 32, "new_tokens": 8, **options}
    asked = make_identity(quant, engine="vllm", model=PACKAGED, **work)
    return {**asked, "environment": environment(ENVIRONMENT)}


def value(report: AttemptReport, name: str) -> float:
    found: Any = report.metrics[name]
    return float(found.value)


@pytest.mark.long
@pytest.mark.parametrize("quant", ["fp32", "bf16", "fp16"])
def test_the_packaged_model_is_measured_for_real(isolation: Isolation, quant: str) -> None:
    report = run_attempt(isolation, identity(quant, quality_tokens=64, batch_size=2))
    assert report.outcome is Outcome.OK, report.reason
    assert report.facts["proofs"]["causal"] == report.facts["proofs"]["cache"] == "proven"
    assert len(report.facts["output_digests"]) == 1
    proofs = {each.what: each.got for each in report.engaged}
    assert proofs["format"] == {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[quant]
    assert proofs["prefix cache"] == "False"
    assert proofs["prompt tokens from a cache"] == "0"
    assert proofs["device"] == "cpu"
    assert int(proofs["cache room"]) < 1000
    assert {"ttft_s", "tpot_s", "itl_s", "load_s"} <= report.metrics.keys()
    assert value(report, "weights_bits_per_parameter") == (32 if quant == "fp32" else 16)
    assert value(report, "kl_top_to_reference") < (1e-4 if quant == "fp32" else 1e-2)
    assert value(report, "perplexity") == pytest.approx(
        value(report, "reference_perplexity"), rel=0.01
    )


@pytest.mark.long
@pytest.mark.timeout(900)  # it builds two environments
def test_text_is_generated_for_an_evaluation(isolation: Isolation, tmp_path: Path) -> None:
    task = words_task(tmp_path, items=4)
    # Some texts are left in the middle.
    task.write_text(WORDS.replace("8;w67;T", "1"))
    ours, plain = (
        answers_of(evaluated(isolation, asked, None, task))
        for asked in (
            identity("fp32", batch_size=2),
            make_identity(model=PACKAGED, task="quality", tokens=64),
        )
    )
    # Where the two likeliest tokens are next to each other, its sums may choose the other one.
    assert sum(one == two for one, two in zip(ours, plain, strict=True)) >= 3
    assert len(set(ours)) > 1


SUPERVISOR = """
import json, sys
from orchestrator.attempt import PlannedAttempt, Slot, Trial
from orchestrator.isolate.isolation import Isolation

class Watch:
    def start(self, slot): pass
    def attach(self, pid): print(pid, flush=True)
    def finish(self, phases): pass

spec = PlannedAttempt(Trial("0" * 64, json.loads(sys.argv[1])), attempt_id="a")
for item in Isolation().run(spec, Slot("n", "h", ()), Watch()):
    print(getattr(item, "name", item), flush=True)
"""


def served(**load: Any) -> dict[str, Any]:
    asked = make_identity(
        "bf16",
        task="serving",
        engine="vllm",
        model=PACKAGED,
        **{"warmup_s": 0.0, **load},
        prompt_tokens=16,
        new_tokens=4,
    )
    return {**asked, "environment": environment(ENVIRONMENT)}


@pytest.mark.long
def test_its_own_server_is_put_under_load(isolation: Isolation) -> None:
    report = run_attempt(isolation, served(requests=4, concurrency=2))
    assert report.outcome is Outcome.OK, report.reason
    assert report.facts["requests"]["answered"] == 4
    assert report.facts["requests"]["tokens_counted_by"] == ["usage"]
    assert {"ttft_s", "tpot_s", "e2e_s", "output_tokens_per_s"} <= report.metrics.keys()
    proofs = {each.what: each.got for each in report.engaged}
    assert proofs["prompt tokens from a cache under load"] == "0"
    assert b"PAR1" in report.artifacts["requests.parquet"]


@pytest.mark.long
@pytest.mark.parametrize("killed", ["supervisor", "attempt"])
@pytest.mark.parametrize("phase", ["warmup", "under_load"])
@pytest.mark.usefixtures("isolation")
def test_nothing_outlives_an_attempt_that_is_killed(killed: str, phase: str) -> None:
    endless = identity(new_tokens=4000) if phase == "warmup" else served(duration_s=600.0)
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, json.dumps(endless)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as supervisor:
        assert supervisor.stdout is not None
        attempt = int(supervisor.stdout.readline())
        while phase not in supervisor.stdout.readline():
            assert supervisor.poll() is None
        family = [psutil.Process(attempt), *psutil.Process(supervisor.pid).children(recursive=True)]
        os.kill(supervisor.pid if killed == "supervisor" else attempt, signal.SIGKILL)
        supervisor.communicate()
    until(lambda: not any(each.is_running() for each in family))


def having(*packages: str) -> dict[str, Any]:
    return {"python": "3.11", "packages": dict.fromkeys(packages, "0.32.0")}


def test_each_device_has_a_build_and_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "flags", lambda: frozenset({"avx512f"}))
    cuda = {"kind": "cuda", "threads": 1}
    for quant in ("fp32", "bf16", "fp16"):
        on_cpu = make_identity(quant, engine="vllm", model=PACKAGED)
        on_cuda = {**on_cpu, "device": cuda}
        for others in (None, having("vllm", "torch")):
            found = str(check({**on_cpu, "environment": others}))
            assert found == "vllm on device=cpu needs vllm-cpu: use environment=vllm_cpu"
        for others in (None, having("vllm-cpu", "torch")):
            found = str(check({**on_cuda, "environment": others}))
            assert found == "vllm on device=cuda needs vllm: use environment=vllm"
        assert check({**on_cpu, "environment": having("vllm-cpu")}) is None
        assert check({**on_cuda, "environment": having("vllm")}) is None
        assert ENGINE.packages(on_cpu) == ("vllm-cpu", "torch", "transformers")
        assert ENGINE.packages(on_cuda) == ("vllm", "torch", "transformers")


def test_the_cache_has_room_for_its_sequences_and_a_block_of_each(saved_model: Path) -> None:
    from transformers import AutoConfig

    files = tuple(saved_model.glob("*.safetensors"))
    prepared = Prepared(AutoConfig.from_pretrained(saved_model), saved_model, files, "")
    for quant, number_bytes in (("fp32", 4), ("bf16", 2)):
        asked = make_identity(quant, engine="vllm", model={"source": "path"})
        model = engine.VllmModel(prepared, asked)
        # Two layers, two heads of 16 for keys and for values; 256 tokens a block, and one more.
        token_bytes = 2 * 2 * 2 * 16 * number_bytes
        assert model.cache_bytes(3, 100) == (3 * 100 + 4 * 256) * token_bytes


def test_more_than_one_gpu_is_infeasible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {**make_identity(engine="vllm", model=PACKAGED), "device": {"kind": "cuda"}}
    recorder = Recorder(lambda event: None, HostClock(), tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    with pytest.raises(Infeasible, match="one GPU here"):
        ENGINE.prepare(asked, recorder)


def test_what_it_cannot_do_is_infeasible(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {**make_identity("bf16", engine="vllm", model=PACKAGED)}
    asked["environment"] = having("vllm-cpu")
    monkeypatch.setattr(engine, "flags", lambda: frozenset({"avx512f"}))
    assert "has no nf4" in str(check({**asked, "quant": make_identity("nf4")["quant"]}))
    assert "random weights have none" in str(check({**asked, "model": make_identity()["model"]}))
    monkeypatch.setattr(engine, "flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(engine.platform, "machine", lambda: "x86_64")
    assert "needs AVX-512" in str(check(asked))
