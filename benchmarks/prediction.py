"""How far predicted times are from measured ones, against ceilings measured on this machine.

Every configuration runs as an attempt in a process of its own, as it would in a sweep; its median
is held against the prediction. The signed error is measured over predicted minus one: +0.10 means
that it took a tenth longer than the ceilings allow. Products and memory are tried before and after
each: where they are slower than when the ceilings were measured (``drift``), it runs again.

Run it as ``python benchmarks/prediction.py`` on a machine that does nothing else: some minutes.
``--smoke`` tries two small configurations, ``--only TEXT`` those with it in their name;
``--protocol standard`` (or ``strict``) measures longer.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from statistics import mean
from typing import Any

from benchmarks._attempts import trial_of
from benchmarks._machine import arguments, emit
from orchestrator.host.cpu import usable_cores
from testing.trial import run_attempt

SMOLLM2 = (
    "model=random",
    "model.architecture.vocab_size=49152",
    "model.architecture.hidden_size=576",
    "model.architecture.intermediate_size=1536",
    "model.architecture.num_hidden_layers=30",
    "model.architecture.num_attention_heads=9",
    "model.architecture.num_key_value_heads=3",
)
MODELS: dict[str, tuple[str, ...]] = {
    "20m": ("model=size/20m",),
    "135m": SMOLLM2,
    "s": ("model=size/s",),
}
# model, quant, prompt, batch
INFERENCE = (
    ("20m", "fp32", 128, 1),
    ("20m", "bf16", 512, 1),
    ("20m", "fp32", 256, 4),
    ("20m", "fp32", 64, 16),
    ("135m", "fp32", 128, 1),
    ("135m", "fp32", 512, 1),
    ("135m", "fp32", 128, 4),
    ("135m", "bf16", 512, 1),
    ("135m", "bf16", 128, 4),
    ("s", "fp32", 256, 1),
    ("s", "fp32", 32, 8),
    ("s", "bf16", 128, 1),
)
# model, quant, context
TRAINING = (
    ("20m", "fp32", 128),
    ("20m", "fp32", 256),
    ("20m", "bf16", 256),
    ("135m", "fp32", 128),
    ("s", "fp32", 128),
    ("s", "fp32", 64),
)
# A CPU without instructions for half precision takes minutes for one of its prefills.
PREFILL_ROWS, SLOWEST_HALF_FLOP_PER_S = 256, 1e10
SMOKE = 1
CEILING_TRIES, PAUSE_S = 6, 20.0
# A machine that others share has slower minutes: a configuration is then measured again.
MOST_DRIFT, DRIFT_TRIES, DRIFT_PAUSE_S = 1.1, 3, 5.0
RATIO = "measured_over_predicted."
KINDS = {"ttft_s": "prefill", "tpot_s": "decode", "step_s": "training"}


def configurations(smoke: bool) -> dict[str, list[str]]:
    """Name to overrides."""
    found: dict[str, list[str]] = {}
    for model, quant, prompt, batch in INFERENCE[: SMOKE if smoke else None]:
        words = ["task=inference", *MODELS[model], f"quant={quant}"]
        words += [f"task.prompt_tokens={prompt}", f"task.batch_size={batch}", "task.new_tokens=32"]
        found[f"inference.{model}.{quant}.{prompt}x{batch}"] = words
    for model, quant, context in TRAINING[: SMOKE if smoke else None]:
        words = ["task=training", *MODELS[model], f"quant={quant}"]
        found[f"training.{model}.{quant}.{context}"] = [*words, f"task.context_tokens={context}"]
    return found


def measure(words: list[str], protocol: str, isolation: Any) -> Any:
    """The report of one attempt, with its predictions."""
    from orchestrator.plan.predictions import with_predictions
    from orchestrator.record.provenance import package_versions
    from orchestrator.schedule.ceilings import keep_measured
    from orchestrator.telemetry.fingerprint import hardware_of

    trial = trial_of(*words, f"protocol={protocol}")
    report = run_attempt(isolation, trial.identity, config_hash=trial.hash)
    assert report.slot is not None
    report.facts |= hardware_of(report.slot, ())
    report.provenance["packages"] = package_versions()
    keep_measured(report, trial.identity)
    return with_predictions(report, trial.identity)


def measure_steadily(
    name: str, words: list[str], protocol: str, isolation: Any, drift: Drift
) -> Any:
    """As :func:`measure`, again while the machine is not as fast as its ceilings were."""
    for attempt in range(DRIFT_TRIES):
        if attempt:
            time.sleep(DRIFT_PAUSE_S)
        before = drift.now()
        report = measure(words, protocol, isolation)
        found = max(before, drift.now())
        if found <= MOST_DRIFT:
            break
    emit(f"prediction.{name}.drift", found, "1")
    return report


def measure_ceilings(isolation: Any) -> bool:
    """Measure the ceilings until the machine was quiet for once; False if it never was."""
    from orchestrator.model.known_ceilings import load_this

    for attempt in range(CEILING_TRIES):
        if attempt:
            time.sleep(PAUSE_S)
        report = measure(["task=ceilings"], "quick", isolation)
        if report.outcome.value != "ok":
            print(f"ceilings: {report.outcome.value}: {report.reason}", file=sys.stderr)
            return False
        found = load_this(("cpu",))
        if found.is_steady:
            return True
        print(f"the machine is busy: spread {found.spread:.1f}, again", file=sys.stderr)
    return False


class Drift:
    """How much slower the machine is now than when its ceilings were measured: products, memory."""

    def __init__(self) -> None:
        import torch

        from orchestrator.measure import HostClock
        from orchestrator.model.known_ceilings import load_this
        from orchestrator.tasks.ceilings.timed_operations import CPU, Operations, Timer

        torch.set_num_threads(len(usable_cores()))
        self._timer = Timer(HostClock())
        self._operations = Operations(torch.device("cpu"), CPU, self._timer)
        self._reading_s = 1 / load_this(("cpu",)).reading[-1][1]
        self._size = CPU.reading_bytes[-1]
        self._square = torch.rand(512, 512)
        self._computing_s = min(self._compute() for _ in range(5))

    def now(self) -> float:
        """1 where it is as fast as then."""
        reading = self._operations.reading(self._size) / self._reading_s
        return max(reading, self._compute() / self._computing_s)

    def _compute(self) -> float:
        return self._timer.least_s(lambda: self._square @ self._square)


def main() -> int:
    """Print one line a configuration and metric, then the mean absolute errors."""
    from orchestrator.isolate.isolation import Isolation
    from orchestrator.model.known_ceilings import load_this

    options = arguments(__doc__, smoke=False, only="", protocol="quick")
    errors: dict[str, list[float]] = {kind: [] for kind in KINDS.values()}
    with tempfile.TemporaryDirectory() as cache, Isolation() as isolation:
        # The ceilings of this hour, not those of a busier one.
        os.environ["ORCHESTRATOR_CACHE"] = cache
        if not measure_ceilings(isolation):
            return 1
        drift = Drift()
        wanted = configurations(options.smoke)
        half = load_this(("cpu",)).flops_per_s("bfloat16", PREFILL_ROWS)
        if half < SLOWEST_HALF_FLOP_PER_S:
            print("bf16 left out: this CPU has no instructions for it", file=sys.stderr)
            wanted = {name: words for name, words in wanted.items() if ".bf16." not in name}
        for name, words in wanted.items():
            if options.only not in name:
                continue
            report = measure_steadily(name, words, options.protocol, isolation, drift)
            if report.outcome.value != "ok":
                print(f"{name}: {report.outcome.value}: {report.reason}", file=sys.stderr)
                continue
            for metric, kind in KINDS.items():
                found = report.metrics.get(f"{RATIO}{metric}")
                if found is not None:
                    errors[kind].append(found.value - 1)
                    emit(f"prediction.{name}.{kind}.signed_error", found.value - 1, "1")
                elif f"predicted_{metric}" in report.metrics:
                    absent = report.metrics[f"predicted_{metric}"]
                    reason = getattr(absent, "reason", "not measured")
                    print(f"{name}: no {metric}: {reason}", file=sys.stderr)
    everything = [error for found in errors.values() for error in found]
    for kind, found in errors.items():
        if found:
            worth = mean(map(abs, found))
            emit(f"prediction.{kind}.mean_absolute_error", worth, "1", n=len(found))
    if not everything:
        print("nothing could be predicted", file=sys.stderr)
        return 1
    worth = mean(map(abs, everything))
    required = "<= 0.15"
    emit("prediction.mean_absolute_error", worth, "1", required=required, n=len(everything))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
