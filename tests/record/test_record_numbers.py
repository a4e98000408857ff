"""What MLflow holds of an attempt, read in bulk: the numbers its report has, from any store."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.measure.metric import Metric, Samples, Value
from orchestrator.measure.series import PARQUET_ARTIFACT, SERVER_ARTIFACT, SeriesSet
from orchestrator.record import Recording
from orchestrator.record.embedded import EmbeddedStore
from orchestrator.record.params import legal_key
from orchestrator.record.points import (
    PHASES_PREFIX,
    STATISTICS,
    by_statistic,
    is_measured,
    metric_points,
)
from orchestrator.record.tracking_server import ServerStore
from orchestrator.statistics.summary import summarise_by
from testing.servers import TrackingServer
from testing.trial import ok_report

PROTOCOL = {"confidence": 0.9, "resamples": 200}
NUMBERS = st.floats(width=32) | st.just(math.nan)
NAMES = st.sampled_from(["tpot_s", "value", "p95", "loss, train", "mfu", "a/b_bytes"])
METRICS = st.dictionaries(NAMES, NUMBERS | st.lists(NUMBERS, max_size=6).map(tuple), max_size=5)


def metric_of(name: str, found: float | tuple[float, ...]) -> Metric:
    return Samples(name, "1", found) if isinstance(found, tuple) else Value(name, "1", found)


def finite_numbers(metric: Metric) -> dict[str, float]:
    """What is said of one metric, as far as MLflow can hold it."""
    if isinstance(metric, Value):
        told = {"median": metric.value}
    else:
        assert isinstance(metric, Samples)
        told = asdict(summarise_by(PROTOCOL, metric.values)) if metric.values else {}
    found = {name: told.get(name) for name in STATISTICS}
    return {k: v for k, v in found.items() if v is not None and math.isfinite(v)}


@given(METRICS, METRICS)
def test_points_are_read_back(
    measured: dict[str, float | tuple[float, ...]], watched: dict[str, float | tuple[float, ...]]
) -> None:
    metrics = [metric_of(name, found) for name, found in measured.items()]
    report = ok_report(*metrics, duration_s=1.0)
    report.telemetry = {f"decode.{name}": metric_of(name, x) for name, x in watched.items()}
    points = {point.key: point.value for point in metric_points(report, PROTOCOL)}
    found = by_statistic({key: value for key, value in points.items() if is_measured(key)})
    expected: dict[str, dict[str, float]] = {}
    for prefix, metrics_of in (("", report.metrics), (PHASES_PREFIX, report.telemetry)):
        for name, metric in metrics_of.items():
            if finite := finite_numbers(metric):
                expected[legal_key(f"{prefix}{name}").removeprefix(prefix)] = finite
    assert found == expected


@pytest.mark.parametrize(
    "key", ["predicted_ttft_s", "measured_over_predicted.ttft_s", "mfu.measured_peak.n"]
)
def test_what_is_derived_is_not_measured(key: str) -> None:
    assert not is_measured(key)
    assert not is_measured("attempt_duration_s")
    assert not is_measured("system/gpu0/power_w")
    assert is_measured("system/phases/decode.power_w")


def test_every_store_tells_the_same(
    store: EmbeddedStore,
    server: TrackingServer,
    tmp_path: Path,
    kit: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.record.backend.MAX_ASKED_RUNS", 2)
    trials = [kit.trial_of(value) for value in range(300, 303)]
    told = []
    for place in (store, ServerStore(server.uri, state=tmp_path / "state")):
        with Recording(place, kit.plan_of(trials, "numbers")) as recording:
            for trial in trials:
                spec = kit.spec_of(trial, sweep="numbers")
                recording.finish(kit.report_of(spec), trial)
            assert recording.flush(120)
        runs = {a.run_id: a.config_hash for a in place.sweep_attempts("numbers")}
        numbers = place.numbers(list(runs))
        hashes = list(runs.values())
        told.append({k: dict(zip(hashes, found, strict=True)) for k, found in numbers.items()})
        assert place.numbers([]) == {}
    assert told[0] == told[1]
    assert told[0]["tpot_s"] == {trial.hash: 0.12 for trial in trials}
    assert told[0]["weights_bytes"][trials[0].hash] == 123.0
    assert told[0]["system/phases/decode.power_w"][trials[0].hash] == 250.0


def test_what_a_server_exports_of_itself_has_the_clock_of_telemetry() -> None:
    telemetry, server = SeriesSet(10**9), SeriesSet(4 * 10**9)
    telemetry.add("host", "load", 2 * 10**9, 0.5)
    for second, count in ((5, 3.0), (6, 7.0)):
        server.add("server", 'seen_total{user="a"}', second * 10**9, count)
    artifacts = {PARQUET_ARTIFACT: telemetry.to_parquet(), SERVER_ARTIFACT: server.to_parquet()}
    report = ok_report(started_at=100.0, artifacts=artifacts)
    points = [p for p in metric_points(report, {}) if p.key.startswith("system/server/seen_total")]
    # Counters as they are.
    assert [(p.value, p.timestamp_ms, p.step) for p in points] == [
        (3.0, 104_000, 4_000),
        (7.0, 105_000, 5_000),
    ]
