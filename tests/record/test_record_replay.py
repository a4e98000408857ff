"""A recorded sweep is read again as it was run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from orchestrator.plan.schema import Settings, SloConfig
from orchestrator.record import Recording
from orchestrator.record.embedded import EmbeddedStore
from orchestrator.record.replay import replay
from orchestrator.report import build_table
from orchestrator.report.show.bundle import report_files


def test_limits_on_requests_are_those_of_the_run(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    trial = kit.trial_of(0)
    slo = SloConfig(ttft_s=0.02, e2e_s=0.5, attainment=0.9)
    plan = replace(kit.plan_of([trial]), settings=Settings(slo=slo))
    spec = kit.spec_of(trial)
    with Recording(store, plan) as recording:
        recording.begin(spec, kit.SLOT)
        recording.finish(kit.report_of(spec), trial)
        assert recording.flush(60)
    assert replay(store, plan.sweep).plan.settings.slo == slo


def test_a_trial_that_was_never_made_is_still_told(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    made, never = kit.trial_of(0), kit.trial_of(1)
    plan = kit.plan_of([made, never])
    spec = kit.spec_of(made)
    with Recording(store, plan) as recording:
        recording.begin(spec, kit.SLOT)
        recording.finish(kit.report_of(spec), made)
        assert recording.flush(60)
    found = replay(store, plan.sweep)
    outcomes = {row.label: row.outcome for row in build_table(found.plan, found.attempts).rows}
    assert outcomes == {"value 0": "ok", "value 1": "not_run"}
    page = report_files(found.plan, found.attempts)["report.md"].decode()
    assert "**1 ok · 1 not_run**" in page
