"""``gate``: hold new measurements to a baseline and to rules; the exit code is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands.noise import noise_of
from orchestrator.commands.output import emit, emit_json, say
from orchestrator.commands.selected import labels_of_configs, refuse_the_same, store_of, writing
from orchestrator.errors import UsageError
from orchestrator.plan.places import conf_directory
from orchestrator.record.selection import runs_with_attempts, select
from orchestrator.report.analyse.gate import gate
from orchestrator.report.analyse.gate_rules import load_rules
from orchestrator.report.show.gate_view import GateView
from orchestrator.report.show.junit import junit_xml

if TYPE_CHECKING:
    from orchestrator.record import Store


def gate_command(
    new: str | None,
    baseline: str,
    rules: str,
    overrides: Sequence[str],
    junit: Path | None,
    allow_different: bool,
    as_json: bool,
) -> int:
    """Exit 0 pass, 1 regression, 2 inconclusive, 3 incomparable; an error raised here exits 4.

    Without ``new``, the newest run of any sweep that measured something is held to the baseline; if
    the baseline is that sweep by name, its run before that is what is meant.
    """
    rule_set = load_rules(_rules_file(rules))
    store = store_of(overrides)
    if new is None:
        new, baseline = _newest_against(store, baseline)
    base, candidate = select(store, baseline), select(store, new)
    refuse_the_same(base, candidate)
    result = gate(
        candidate.attempts,
        base.attempts,
        rule_set,
        configs=base.configs | candidate.configs,
        noise=noise_of(store, base.attempts, candidate.attempts),
        allow_different=allow_different,
    )
    if junit is not None:
        with writing(junit, "--junit"):
            junit.write_text(junit_xml(result.to_json()), encoding="utf-8")
    if as_json:
        emit_json({"new": new, "baseline": baseline, **result.to_json()})
    else:
        say(f"{new} against {baseline}")
        emit(GateView(result, labels=labels_of_configs(base, candidate)))
    return result.exit_code


def _newest_against(store: Store, baseline: str) -> tuple[str, str]:
    newest = next(
        (
            run
            for run in sorted(store.sweep_runs(), key=lambda run: -run.started_at)
            if any(run.run_id == found.run_id for found in runs_with_attempts(store, run.sweep))
        ),
        None,
    )
    if newest is None:
        raise UsageError("nothing is recorded yet", where=store.where)
    if baseline == newest.sweep:
        return f"{newest.sweep}@-1", f"{newest.sweep}@-2"
    return f"{newest.sweep}@-1", baseline


def _rules_file(name: str) -> Path:
    """``conf/gate/NAME.yaml``, or the file itself."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    directory = conf_directory() / "gate"
    path = directory / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(found.stem for found in directory.glob("*.yaml")))
        raise UsageError(f"no gate rules {name!r}", where="--rules", fix=f"Known: {known}")
    return path
