"""Sweeps made up for the report tests: real typed values, invented numbers."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, Outcome, Resources, RuleResult, Slot, Trial, Verdict
from orchestrator.measure import Absent, Samples, Value
from orchestrator.plan.plan import Plan
from orchestrator.plan.schema import Settings

SLOWNESS = {"fp32": 1.0, "bf16": 0.8, "int8": 1.9, "nf4": 2.9}
WEIGHTS_BYTES = {"fp32": 538e6, "bf16": 269e6, "int8": 163e6, "nf4": 103e6}


class Samplers:
    """Builds plans and the reports of their attempts."""

    def identity(self, quant: str, prompt: int, new: int = 32) -> dict[str, Any]:
        return {
            "schema": 1,
            "task": {"name": "inference", "prompt_tokens": prompt, "new_tokens": new},
            "model": {"source": "packaged", "id": "smollm2_135m", "revision": None, "path": None},
            "quant": {"scheme": quant if quant in ("int8", "nf4") else "none", "dtype": "float32"},
            "protocol": {"warmup": 1, "ci_relative_half_width": 0.05},
            "device": {"kind": "cpu", "threads": None},
            "seed": 0,
        }

    def plan(
        self,
        quants: tuple[str, ...] = ("fp32", "bf16", "int8", "nf4"),
        prompts: tuple[int, ...] = (512, 1024),
        **changes: Any,
    ) -> Plan:
        trials = tuple(
            Trial(
                hash=hashlib.sha256(f"{quant} {prompt}".encode()).hexdigest(),
                identity=self.identity(quant, prompt),
                axes={"quant": quant, "task.prompt_tokens": prompt},
                resources=Resources(cpus=2),
                timeout_s=1800.0,
                infeasible=None,
            )
            for quant in quants
            for prompt in prompts
        )
        given = {
            "sweep": "quant",
            "description": "Which precision should I use?",
            "trials": trials,
            "settings": Settings(),
            "baseline": {"quant": "fp32"},
            "axes": {"quant": quants, "task.prompt_tokens": tuple(map(str, prompts))},
            "duplicates": 0,
        }
        return Plan(**{**given, **changes})

    def slot(self, host: str = "node-1", cpus: tuple[int, ...] = (0, 1)) -> Slot:
        return Slot(node_id="n", host=host, cpus=cpus, memory_bytes=8 * 2**30)

    def report(
        self,
        trial: Trial,
        number: int = 1,
        *,
        outcome: Outcome = Outcome.OK,
        reason: str | None = None,
        verdict: str = "valid",
        noise: float = 0.01,
        rules: tuple[RuleResult, ...] = (),
    ) -> AttemptReport:
        rng = random.Random(f"{trial.hash} {number}")
        quant = str(trial.axes.get("quant", "fp32"))
        slow = SLOWNESS.get(quant, 1.5)
        prompt = int(trial.identity["task"].get("prompt_tokens", 512))
        metrics: dict[str, Any] = {}
        if outcome in (Outcome.OK, Outcome.INVALID):
            tpot = [0.0612 * slow * rng.lognormvariate(0, noise) for _ in range(8)]
            ttft = [0.00081 * prompt * slow * rng.lognormvariate(0, noise) for _ in range(8)]
            itl = [0.0612 * slow * rng.lognormvariate(0, 0.05) for _ in range(8 * 31)]
            metrics = {
                m.name: m
                for m in (
                    Samples("ttft_s", "s", tuple(ttft), (ttft[0] * 1.3,), "ci"),
                    Samples("tpot_s", "s", tuple(tpot), (tpot[0] * 1.2,), "ci"),
                    Samples("decode_tokens_per_s", "tokens/s", tuple(1 / t for t in tpot)),
                    Samples("itl_s", "s", tuple(itl)),
                    Samples(
                        "e2e_s", "s", tuple(a + 31 * b for a, b in zip(ttft, tpot, strict=True))
                    ),
                    Value("load_s", "s", 1.9 * slow * rng.lognormvariate(0, 0.02)),
                    Value("weights_bytes", "bytes", WEIGHTS_BYTES.get(quant, 2e8)),
                    Value("peak_memory_over_weights_bytes", "bytes", 2e8 + 3e5 * prompt),
                    Value("perplexity", "1", 17.2 * (1 + 0.02 * slow)),
                    Absent("energy_j", "J", "no NVML on this machine"),
                )
            }
        if verdict == "invalid" and not rules:
            rules = (
                RuleResult("cpu_steal", "invalid", 0.082, 0.05, "steal time 8.2 % (limit 5 %)"),
            )
        return AttemptReport(
            attempt_id=f"{trial.hash[:12]}-{number}",
            config_hash=trial.hash,
            outcome=outcome,
            reason=reason,
            number=number,
            sweep="quant",
            started_at=1_760_000_000.0 + 60 * number,
            ended_at=1_760_000_012.3 + 60 * number,
            duration_s=12.3,
            metrics=metrics,
            verdict=Verdict(verdict, rules),
            slot=self.slot(),
            provenance={"host": "node-1", "git_commit": "0123abcd", "hardware": "2 cores"},
        )

    def reports(self, plan: Plan, attempts: int = 1) -> dict[str, list[AttemptReport]]:
        return {t.hash: [self.report(t, n) for n in range(1, attempts + 1)] for t in plan.trials}


@pytest.fixture
def make() -> Samplers:
    """Builders of plans and reports."""
    return Samplers()
