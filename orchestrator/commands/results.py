"""Commands about what is recorded: show, compare, gate, report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.parser import emit_json
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.record import Store
    from orchestrator.record.selection import Selection
    from orchestrator.report.analyse.operators import OperatorDiff


def show_command(prefix: str, overrides: Sequence[str], as_json: bool) -> int:
    """One trial: configuration, attempts, metrics with CIs, verdict, provenance, artifacts."""
    from orchestrator.report.show.trial_view import ShowView, show_json
    from orchestrator.schedule.evaluate import cell_of

    store = _store(overrides)
    if (cell := cell_of(store, prefix)) is not None:
        computed, wanted = [(cell.run_id, cell.report)], cell.report.config_hash
        if as_json:
            emit_json(show_json(wanted, cell.config, computed))
        else:
            names = {cell.run_id: store.artifact_names(cell.run_id)}
            _print(ShowView(wanted, cell.config, computed, names))
        return 0
    config_hash = store.resolve(prefix)
    finished = [a for a in store.attempts([config_hash])[config_hash] if a.outcome]
    if not finished:
        raise UsageError(f"{prefix} has no finished attempt yet", where=store.where)
    attempts = list(store.load_all([a.run_id for a in finished]).items())
    config = store.identity(finished[-1].run_id)
    if as_json:
        emit_json(show_json(config_hash, config, attempts))
        return 0
    artifacts = {run_id: store.artifact_names(run_id) for run_id, _ in attempts}
    _print(ShowView(config_hash, config, attempts, artifacts))
    return 0


def compare_command(
    a: str,
    b: str,
    overrides: Sequence[str],
    metrics: Sequence[str],
    allow_different: bool,
    as_json: bool,
) -> int:
    """B over A, metric by metric; always 0: ``gate`` is what judges."""
    from orchestrator.plan.messages import nearest
    from orchestrator.record.selection import noise_of, select
    from orchestrator.report.analyse.compare import compare, tolerance
    from orchestrator.report.show.compare_view import comparison_view
    from orchestrator.report.show.operators_view import OperatorDiffView

    store = _store(overrides)
    base, new = select(store, a), select(store, b)
    _differ(base, new)
    known = {name for side in (base, new) for name in side.metric_names}
    for metric in metrics:
        # `itl_s.p95` is derived from `itl_s`.
        if not {metric, metric.rpartition(".")[0]} & known:
            raise UsageError(
                f"no metric {metric!r} in either", where="--metric", fix=nearest(metric, known)
            )
    noise = noise_of(store, base.fingerprints | new.fingerprints)
    comparison = compare(
        base.attempts,
        new.attempts,
        tau=tolerance(noise),
        between=noise,
        allow_different=allow_different,
        metrics=list(metrics) or None,
    )
    operators = _operator_diffs(store, base, new)
    if as_json:
        more = {"operators": [diff.to_json() for diff in operators]} if operators else {}
        emit_json({**comparison.to_json(), **more})
        return 0
    labels = _labels(base, new)
    _print(comparison_view(comparison, labels=labels, names=(a, b)))
    for diff in operators:
        _print(OperatorDiffView(diff, labels))
    return 0


def _operator_diffs(store: Store, base: Selection, new: Selection) -> list[OperatorDiff]:
    """Of every pair of trials whose newest ``ok`` attempts both left a table of operators."""
    from orchestrator.report.analyse.compare import pair
    from orchestrator.report.analyse.operators import OPERATORS_FILE, diff_operators, read_operators
    from orchestrator.report.analyse.rows import believable

    def table(side: Selection, config_hash: str) -> dict[str, Any] | None:
        counted = believable(side.attempts[config_hash])
        if not counted or side.configs[config_hash]["task"]["name"] != "profile":
            return None
        newest = max(counted, key=lambda report: (report.started_at, report.number))
        try:
            return read_operators(store.artifact(side.run_ids[newest.attempt_id], OPERATORS_FILE))
        except FileNotFoundError:
            return None

    found = []
    for hash_a, hash_b in pair(base.attempts, new.attempts):
        before, after = table(base, hash_a), table(new, hash_b)
        if before is not None and after is not None:
            found.append(diff_operators(hash_a, before, hash_b, after))
    return found


def gate_command(
    new: str | None,
    baseline: str,
    rules: str,
    overrides: Sequence[str],
    junit: Path | None,
    allow_different: bool,
    as_json: bool,
) -> int:
    """Exit 0 pass, 1 regression, 2 inconclusive, 3 incomparable.

    Without ``new``, the newest run of any sweep that measured something is held to the baseline; if
    the baseline is that sweep by name, its run before that is what is meant.
    """
    from orchestrator.record.selection import noise_of, select
    from orchestrator.report.analyse.gate import gate
    from orchestrator.report.analyse.gate_rules import load_rules
    from orchestrator.report.show.gate_view import gate_view

    rule_set = load_rules(_rules_file(rules))
    store = _store(overrides)
    if new is None:
        new, baseline = _newest_against(store, baseline)
    base, candidate = select(store, baseline), select(store, new)
    _differ(base, candidate)
    result = gate(
        candidate.attempts,
        base.attempts,
        rule_set,
        configs=base.configs | candidate.configs,
        noise=noise_of(store, base.fingerprints | candidate.fingerprints),
        allow_different=allow_different,
    )
    if junit is not None:
        with _writing(junit, "--junit"):
            junit.write_text(result.to_junit_xml(), encoding="utf-8")
    if as_json:
        emit_json({"new": new, "baseline": baseline, **result.to_json()})
    else:
        click.echo(f"{new} against {baseline}", err=True)
        _print(gate_view(result, labels=_labels(base, candidate)))
    return result.exit_code


def _newest_against(store: Store, baseline: str) -> tuple[str, str]:
    from orchestrator.record.selection import runs_with_attempts

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
    from orchestrator.plan import conf_directory

    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    directory = conf_directory() / "gate"
    path = directory / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(found.stem for found in directory.glob("*.yaml")))
        raise UsageError(f"no gate rules {name!r}", where="--rules", fix=f"Known: {known}")
    return path


def report_command(sweep: str, overrides: Sequence[str], output: Path, as_json: bool) -> int:
    """Write ``report.html``, ``report.md``, ``table.csv`` and ``table.json`` into ``output``."""
    from orchestrator.record.replay import replay
    from orchestrator.report import build_table
    from orchestrator.report.show.bundle import report_files
    from orchestrator.report.show.export import to_json

    found = replay(_store(overrides), sweep)
    if as_json:
        emit_json(to_json(build_table(found.plan, found.attempts)))
        return 0
    with _writing(output, "--output"):
        output.mkdir(parents=True, exist_ok=True)
    files = report_files(
        found.plan, found.attempts, command=found.command, telemetry=found.telemetry
    )
    for name, content in files.items():
        with _writing(output / name, "--output"):
            (output / name).write_bytes(content)
        click.echo(output / name)
    return 0


@contextlib.contextmanager
def _writing(path: Path, flag: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", where=flag) from error


def _differ(a: Selection, b: Selection) -> None:
    """Refuse to set attempts against themselves: everything would be equal."""
    from orchestrator.record.selection import attempt_ids

    if attempt_ids(a) == attempt_ids(b):
        raise UsageError(
            f"{a.word} and {b.word} are the same attempts",
            fix="Of a sweep's runs, NAME@-1 is the last and NAME@-2 the one before",
        )


def _store(overrides: Sequence[str]) -> Store:
    from orchestrator.plan import settings_of
    from orchestrator.record import open_store

    return open_store(settings_of(overrides).tracking)


def _labels(*selections: Selection) -> dict[str, str]:
    """Names of all trials in play, with the task options that tell them apart."""
    from orchestrator.report.analyse.labels import SEPARATOR, axis_name, axis_value, plain_label

    configs = {h: config for selection in selections for h, config in selection.configs.items()}
    values: dict[str, set[str]] = {}
    for config in configs.values():
        for key, value in config["task"].items():
            values.setdefault(key, set()).add(axis_value(value))
    varying = [key for key in values if len(values[key]) > 1 and key != "name"]
    return {
        config_hash: SEPARATOR.join(
            [
                plain_label(config),
                *(
                    f"{axis_name(f'task.{key}')} {axis_value(config['task'][key])}"
                    for key in varying
                    if key in config["task"]
                ),
            ]
        )
        for config_hash, config in configs.items()
    }


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console(highlight=False).print(renderable)
