"""``show`` and ``plan`` read well, and their JSON keeps its shape."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from rich.cells import cell_len

from orchestrator.attempt import Outcome, Resources, RuleResult
from orchestrator.measure import Absent, Engaged, Samples, Value
from orchestrator.plan.plan import TrialState
from orchestrator.report.show.plan_view import plan_view, resources_text
from orchestrator.report.show.tree import flat
from orchestrator.report.show.trial_view import ShowView, metric_summary, show_json
from testing.printed import printed


@pytest.fixture
def trial(make):
    return make.plan().trials[6]


@pytest.fixture
def attempts(make, trial):
    rules = (
        RuleResult("low_samples", "flagged", 8.0, 20.0, "8 samples"),
        RuleResult("steal", "pass", 0.01, 0.05),
    )
    last = make.report(trial, 3, verdict="flagged", rules=rules)
    last.engaged = [Engaged("weights", "nf4", "nf4", True)]
    last.telemetry = {
        "decode.pss_bytes": Value("decode.pss_bytes", "bytes", 1.3e9),
        "decode.power_w": Absent("decode.power_w", "W", "no NVML on this machine"),
    }
    last.artifacts = {"log.txt": b"x"}
    late = make.report(trial, 2, outcome=Outcome.TIMEOUT, reason="ran past 1800 s (timeout_s)")
    return [("3f" * 16, make.report(trial, 1)), ("77" * 16, late), ("90" * 16, last)]


def test_show_tells_everything(trial, attempts):
    text = printed(ShowView(trial.hash, trial.identity, attempts, {"90" * 16: ["samples.parquet"]}))
    for said in (
        f"inference · smollm2_135m · nf4  {trial.hash[:12]}",
        trial.hash,
        "name=inference  prompt_tokens=512  new_tokens=32",
        "2: ran past 1800 s (timeout_s)",
        "metrics, 2 attempts pooled",
        "not had: energy_j (no NVML on this machine)",
        "not had: power_w (no NVML on this machine)",
        "verdict of attempt 3: flagged",
        "passed: steal",
        "log.txt, samples.parquet",
        f"again: python -m orchestrator reproduce {trial.hash[:12]}",
    ):
        assert said in text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_every_word_of_a_proof_is_there_at_any_width(trial, attempts, width):
    asked = "error up to 0.1 of that without context"
    got = "error 0.00012 against 0.14 without context, over 18 tokens"
    attempts[-1][1].engaged.append(Engaged("prompt tokens from the cache", asked, got, True))
    lines = printed(ShowView(trial.hash, trial.identity, attempts), width).splitlines()
    proofs = lines[lines.index("asked for and got") : lines.index("provenance of attempt 3")]
    told = " ".join(" ".join(proofs).split())
    assert "…" not in told
    assert told.count("✓") == 2
    assert sorted(f"{asked} {got}".split()) == sorted(
        word
        for word in told.partition("prompt tokens from the cache")[2].split()
        if word in f"{asked} {got}".split()
    )


def test_an_attempt_began_when_its_other_views_say_wherever_one_reads(trial, attempts, monkeypatch):
    began = show_json(trial.hash, trial.identity, attempts)["attempts"][0]["started"]
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        text = printed(ShowView(trial.hash, trial.identity, attempts))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert "started (UTC)" in text
    assert began[:19].replace("T", " ") in text


@pytest.mark.parametrize("width", [60, 100])
def test_show_squeezes_nothing(trial, attempts, width):
    text = printed(ShowView(trial.hash, trial.identity, attempts), width)
    assert "…" not in text
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width


def test_show_of_a_failure_alone(make, trial):
    report = make.report(trial, outcome=Outcome.ERROR, reason="no weights there")
    text = printed(ShowView(trial.hash, trial.identity, [("ab" * 16, report)]))
    assert "1: no weights there" in text
    assert "\nmetrics" not in text


def test_show_json_is_as_designed(trial, attempts):
    data = json.loads(json.dumps(show_json(trial.hash, trial.identity, attempts), allow_nan=False))
    assert set(data) == {"hash", "config", "attempts"}
    assert data["hash"] == trial.hash
    assert data["config"] == trial.identity
    assert [a["outcome"] for a in data["attempts"]] == ["ok", "timeout", "ok"]
    first, _, last = data["attempts"]
    assert {
        "run_id",
        "outcome",
        "verdict",
        "started",
        "ended",
        "host",
        "devices",
        "metrics",
    } <= set(first)
    assert set(first["metrics"]["tpot_s"]) == {
        *("median", "ci_low", "ci_high", "mean", "std", "mad", "min", "n", "unit"),
        *("p95", "p99", "outliers_mild", "outliers_severe", "bimodal"),
    }
    assert first["metrics"]["weights_bytes"] == {"value": 103e6, "unit": "bytes"}
    assert first["metrics"]["energy_j"]["value"] is None
    assert first["metrics"]["energy_j"]["reason"] == "no NVML on this machine"
    assert last["verdict"]["rules"][0]["limit"] == 20.0
    assert last["metrics"]["decode.pss_bytes"]["unit"] == "bytes"
    assert first["started"].endswith("+00:00")


@pytest.mark.parametrize("width", [70, 110])
def test_outliers_tails_and_modes_are_shown(make, trial, width):
    report = make.report(trial)
    calm = tuple(0.020 + 0.0001 * (i % 10) for i in range(198))
    report.metrics["itl_s"] = Samples("itl_s", "s", (*calm, 0.0218, 0.5))
    twice = tuple(1.0 + 0.001 * (i % 7) + (0.5 if i % 2 else 0.0) for i in range(40))
    report.metrics["tpot_s"] = Samples("tpot_s", "s", twice)
    text = " ".join(printed(ShowView(trial.hash, trial.identity, [("r", report)]), width).split())
    assert "tails: itl_s p95 20.9 ms" in text
    assert "p99" not in text, "200 samples do not tell it"
    assert "outliers, all kept: itl_s 1 mild, 1 severe" in text
    assert "in two modes: tpot_s" in text
    found = metric_summary(report.metrics["itl_s"], {})
    assert (found["outliers_mild"], found["outliers_severe"]) == (1, 1)
    assert found["p95"] == pytest.approx(0.0209)
    assert found["p99"] is None


def test_what_phases_were_too_short_for_is_said_once(make):
    trial = make.plan().trials[0]
    report = make.report(trial)
    for phase, lasted in (("load", 0.01), ("warmup", 0.04)):
        reason = f"lasted {lasted:.3f} s, shorter than the 0.1 s it is read over"
        for name in ("cpu_s", "rss_bytes"):
            report.telemetry[f"{phase}.{name}"] = Absent(f"{phase}.{name}", "1", reason)
    text = " ".join(printed(ShowView(trial.hash, trial.identity, [("r", report)])).split())
    assert text.count("shorter than the 0.1 s") == 1
    assert "not had: cpu_s, rss_bytes (load, warmup: shorter than the 0.1 s" in text


def test_samples_without_values_are_an_absence():
    assert metric_summary(Samples("x_s", "s", ()), {})["value"] is None
    one = metric_summary(Samples("x_s", "s", (2.0,)), {})
    assert (one["median"], one["ci_low"], one["n"]) == (2.0, None, 1)


def test_a_plan_shows_axes_counts_states_and_reasons(make):
    plan = replace(make.plan(), duplicates=2)
    states = {
        plan.trials[0].hash: TrialState("cached"),
        plan.trials[3].hash: TrialState("failed", "oom_host: killed"),
        plan.trials[7].hash: TrialState("infeasible", "needs another device"),
        plan.trials[1].hash: TrialState("new", None, {"memory_bytes": 2**30, "note": "x"}),
    }
    lines = [line.rstrip() for line in printed(plan_view(plan, states)).splitlines()]
    text = "\n".join(lines)
    assert lines[0] == "quant  Which precision should I use?"
    assert lines[1].startswith("8 trials: 5 new · 1 cached · 1 failed · 1 infeasible (2 that hash")
    assert "task.prompt_tokens  512, 1024" in text
    assert "baseline            quant=fp32" in text
    row = next(line for line in lines if line.startswith(plan.trials[1].hash[:12]))
    assert row.split() == [
        plan.trials[1].hash[:12],
        "new",
        "fp32",
        "1024",
        "1",
        "GiB",
    ]
    assert lines[2] == "each takes 2 cores", "said once where it is the same for all"
    assert "failed      bf16 · 1024→32  oom_host: killed" in text


def test_a_plan_says_what_is_not_expected_to_fit(make):
    plan = make.plan()
    states = {
        trial.hash: TrialState("new", "needs at least 24.1 GiB" if at == 2 else None)
        for at, trial in enumerate(plan.trials)
    }
    lines = [line.rstrip() for line in printed(plan_view(plan, states)).splitlines()]
    marked = [line for line in lines if "new !" in line]
    assert marked[0].split()[0] == plan.trials[2].hash[:12]
    assert marked[1:] == ["new !  bf16 · 512→32  needs at least 24.1 GiB"]


def test_a_reason_of_several_trials_is_told_once(make):
    plan = make.plan()
    states = {
        trial.hash: TrialState("infeasible", "too large" if at % 2 else "no instructions")
        for at, trial in enumerate(plan.trials[:7])
    }
    lines = [line.rstrip() for line in printed(plan_view(plan, states)).splitlines()]
    assert lines[-2:] == [
        "infeasible  4 trials  no instructions",
        "infeasible  3 trials  too large",
    ]


def test_axes_that_do_not_fit_become_one_name(make):
    axes = [f"task.option_number_{n}" for n in range(6)]
    trials = [
        replace(trial, axes={axis: int(at == n) for n, axis in enumerate(axes)})
        for at, trial in enumerate(make.plan().trials[:7])
    ]
    plan = replace(make.plan(), trials=tuple(trials), axes=dict.fromkeys(axes, ("0", "1")))
    wide = printed(plan_view(plan, {}), width=160)
    assert "option number 0  option number 1" in wide
    narrow = printed(plan_view(plan, {}), width=60)
    assert max(cell_len(line.rstrip()) for line in narrow.splitlines()) <= 60
    assert "…" not in narrow
    assert "option number 0 1 · option number 1 0" in " ".join(narrow.split())


def test_a_plan_of_thousands_is_cut(make):
    plan = make.plan(prompts=tuple(range(1, 2501)))
    text = printed(plan_view(plan, {}), width=60)
    assert "10000 trials: 10000 new" in text
    assert "2500 values" in text
    assert "… and 9960 more trials" in text
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= 60


def test_an_empty_plan_is_said(make):
    assert "0 trials" in printed(plan_view(replace(make.plan(), trials=()), {}))


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        (Resources(cpus=1), "1 core"),
        (Resources(), "whole node"),
        (Resources(gpus=1, memory_bytes=8 * 2**30), "1 GPU · 8 GiB"),
        (Resources(gpus=2, cpus=4, accelerator="H100"), "2 GPUs (H100) · 4 cores"),
    ],
)
def test_resources_are_said_in_words(resources, text):
    assert resources_text(resources) == text


def test_telemetry_stands_by_phase(make, trial):
    report = make.report(trial)
    for phase, size in (("load", 2**30), ("decode", 2**31)):
        name = f"{phase}.pss_bytes"
        report.telemetry[name] = Value(name, "bytes", size)
    lines = printed(ShowView(trial.hash, trial.identity, [("ab" * 16, report)])).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("telemetry"))
    assert lines[at + 1].split() == ["load", "decode"]
    assert lines[at + 2].split() == ["pss_bytes", "1", "GiB", "2", "GiB"]


def test_of_a_hundred_packages_the_telling_ones_are_named():
    packages = {f"package{i}": "1" for i in range(100)}
    said = flat({**packages, "torch": "2.13.0", "ray": "2.60"})
    assert said == "torch=2.13.0  ray=2.60  and 100 more"
    assert flat({"a": {"b": True, "c": None}, "d": [1, 2]}) == "a={b=true}  d=1, 2"
