"""Turns plans, attempts and reports into run records; secrets are taken out here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import AttemptReport, Outcome, PlannedAttempt, Slot, Trial
from orchestrator.errors import StoreError
from orchestrator.measure.wording import counted, format_name
from orchestrator.plan.predictions import with_predictions
from orchestrator.record.artifacts import (
    CONFIG,
    ENVIRONMENT,
    PLAN,
    PROVENANCE,
    REPORT,
    SAMPLES,
    config_yaml,
    safe_name,
    samples_parquet,
    to_json_bytes,
)
from orchestrator.record.params import flatten, tag_value
from orchestrator.record.points import metric_points
from orchestrator.record.redact import Redactor
from orchestrator.record.run_names import model_label, trial_label
from orchestrator.record.runrecord import (
    ATTEMPT_TAG,
    CONDITION_TAGS,
    NUMBER_TAG,
    RUNNING,
    SEARCH_TAG,
    SWEEP_TAG,
    MetricPoint,
    RunRecord,
)
from orchestrator.record.summaries import AttemptSummary, summary_of_record

if TYPE_CHECKING:
    from orchestrator.plan.plan import Plan

REASON_CHARS = 1_000
MAX_COMMAND_LINE_CHARS = 100

# What the MLflow UI shows as the run's description, rendered as Markdown, and as its creator.
NOTE_TAG = "mlflow.note.content"
USER_TAG = "mlflow.user"

_STATUS = {
    Outcome.OK: "FINISHED",
    Outcome.INVALID: "FINISHED",
    Outcome.CANCELLED: "KILLED",
    Outcome.LOST: "KILLED",
}


def status_of(outcome: Outcome) -> str:
    """MLflow's word for an outcome; the outcome itself is a tag."""
    return _STATUS.get(outcome, "FAILED")


@dataclass(frozen=True)
class Findings:
    """What a sweep found, for its own run; made from what is recorded (and redacted) already.

    Attributes
    ----------
    summary : str
        Markdown that goes above the description the run has from its beginning.
    files : mapping of str to bytes
        Artifacts of the sweep as a whole.
    tags : mapping of str to str
        Marks that it is found again by.
    experiment_tags : mapping of str to str
        For the experiment, such as a view of its runs (:mod:`orchestrator.record.views`).
    """

    summary: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    experiment_tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Builder:
    """Makes the records of one sweep.

    Attributes
    ----------
    sweep_id, sweep : str
        The parent run's key and the sweep's name (the experiment).
    driver : str
        The driver id, on every run so that the dead can be told from the living.
    facts : mapping
        The driver's own provenance: command and git of every attempt, the rest of those whose
        supervisor left none.
    labels : mapping
        Config hash to a short name of the trial.
    search_id : str or None
        Of the search that it is a step of.
    number : int
        Which run of the sweep it is.
    """

    sweep_id: str
    sweep: str
    driver: str
    redactor: Redactor = field(default_factory=Redactor)
    facts: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    search_id: str | None = None
    number: int = 1

    def sweep_begin(self, plan: Plan, started_at: float, todo: int | None = None) -> RunRecord:
        """The parent run: a description for people and the plan for ``report``."""
        command = self.redactor.command([str(word) for word in self.facts.get("command") or ()])
        data = plan_json(plan)
        data["command"] = command
        return RunRecord(
            key_tag=SWEEP_TAG,
            key=self.sweep_id,
            status=RUNNING,
            experiment=self.sweep,
            name=self.sweep,
            start_ms=_ms(started_at),
            tags={
                SWEEP_TAG: self.sweep_id,
                "kind": "sweep",
                "sweep": self.sweep,
                "driver_id": self.driver,
                NUMBER_TAG: str(self.number),
                **({} if self.search_id is None else {SEARCH_TAG: self.search_id}),
                "heartbeat": f"{started_at:.0f}",
                NOTE_TAG: self.redactor.text(description(plan, command, todo)),
                **self._origin_tags(self.facts),
            },
            files={
                PLAN: to_json_bytes(self.redactor.value(data)),
                PROVENANCE: to_json_bytes(self.redactor.value(dict(self.facts))),
            },
        )

    def sweep_end(
        self,
        begin: RunRecord,
        status: str,
        ended_at: float,
        outcomes: Mapping[str, int],
        reason: str | None = None,
        findings: Findings | None = None,
    ) -> RunRecord:
        """The parent run's end: how many attempts ended how, and what the sweep found."""
        findings = findings or Findings()
        summary = self.redactor.text(findings.summary).strip()
        note = f"{summary}\n\n{begin.tags.get(NOTE_TAG, '')}".strip()
        tags = {
            **begin.tags,
            **findings.tags,
            NOTE_TAG: tag_value(note),
            "heartbeat": f"{ended_at:.0f}",
            "outcomes": json.dumps(dict(sorted(outcomes.items()))),
        }
        if reason:
            tags["reason"] = tag_value(self.redactor.text(reason), REASON_CHARS)
        return replace(
            begin,
            status=status,
            end_ms=_ms(ended_at),
            tags=tags,
            files={**begin.files, **findings.files},
            experiment_tags=dict(findings.experiment_tags),
            metrics=tuple(
                MetricPoint(f"attempts.{outcome}", float(count), _ms(ended_at))
                for outcome, count in sorted(outcomes.items())
            ),
        )

    def attempt_submitted(self, attempt: PlannedAttempt, submitted_at: float) -> RunRecord:
        """The little that is told of an attempt whose driver died before it heard of its start."""
        # Every attempt passes here and hardly one is read: JSON is YAML too, and quick to write.
        config = to_json_bytes(self.redactor.value(attempt.trial.identity))
        return self._begun(attempt, None, submitted_at, config)

    def attempt_begin(self, attempt: PlannedAttempt, slot: Slot, started_at: float) -> RunRecord:
        """An attempt's run as it is while the attempt runs."""
        return self._begun(attempt, slot, started_at, self._config(attempt.trial.identity))

    def _begun(
        self, attempt: PlannedAttempt, slot: Slot | None, at: float, config: bytes
    ) -> RunRecord:
        trial = attempt.trial
        record = self._attempt(attempt.attempt_id, attempt.number, trial, slot, at, self.facts)
        return replace(record, files={CONFIG: config})

    def attempt_finish(self, report: AttemptReport, trial: Trial) -> RunRecord:
        """An attempt's run as it shall be for ever: everything the report holds."""
        redact = self.redactor
        identity = trial.identity
        provenance = self._provenance(report)
        # The report's own artifacts first: a task cannot replace the record's files by its own.
        files, left_out = {}, {}
        for name, content in report.artifacts.items():
            try:
                files[safe_name(name)] = redact.artifact(content)
            except StoreError as error:  # of one file's name; what was measured is worth more
                left_out[name] = error.what
        if left_out:
            report = replace(report, facts={**report.facts, "artifacts_left_out": left_out})
        samples = samples_parquet(report)
        if samples is not None:
            files[SAMPLES] = samples
        if report.traceback:
            files["traceback.txt"] = redact.text(report.traceback).encode("utf-8", "replace")
        environment = {
            key: provenance.get(key) for key in ("python", "packages") if provenance.get(key)
        }
        files |= {
            CONFIG: self._config(identity),
            REPORT: to_json_bytes(redact.value({**report.to_json(), "provenance": provenance})),
            PROVENANCE: to_json_bytes(redact.value({**provenance, "facts": report.facts})),
            ENVIRONMENT: to_json_bytes(redact.value(environment)),
        }
        started_at = report.started_at or report.ended_at
        record = self._attempt(
            report.attempt_id, report.number, trial, report.slot, started_at, provenance
        )
        tags = {
            **record.tags,
            "outcome": report.outcome.value,
            "verdict": report.verdict.state,
            "simulated": str(
                bool(provenance.get("simulated") or report.facts.get("simulated"))
            ).lower(),
        }
        if gpus := gpu_names(report.facts):
            tags["gpu"] = tag_value(gpus)
        if report.reason:
            tags["reason"] = tag_value(redact.text(report.reason), REASON_CHARS)
        broken = [
            rule.rule for rule in report.verdict.rules if rule.state in ("flagged", "invalid")
        ]
        if broken:
            tags["verdict_rules"] = tag_value(", ".join(broken))
        fingerprint = provenance.get("hardware_fingerprint") or report.facts.get(
            "hardware_fingerprint"
        )
        if fingerprint:
            tags["hardware_fingerprint"] = tag_value(fingerprint)
        if report.conditions is not None:
            tags["conditions"] = report.conditions.id
            tags |= {CONDITION_TAGS[group]: i for group, i in report.conditions.ids.items()}
            # Of an environment's packages those that the numbers depend on.
            packages = (identity.get("environment") or {}).get("packages", {})
            software = report.conditions.software
            if counts := [f"{name} {packages[name]}" for name in software if name in packages]:
                tags["environment"] = tag_value(", ".join(counts))
        return replace(
            record,
            status=status_of(report.outcome),
            end_ms=_ms(report.ended_at or started_at),
            tags=tags,
            params=redact.value(flatten(redact.value(identity))),
            metrics=tuple(
                metric_points(with_predictions(report, identity), identity.get("protocol") or {})
            ),
            files=files,
        )

    def _attempt(
        self,
        attempt_id: str,
        number: int,
        trial: Trial,
        slot: Slot | None,
        started_at: float,
        provenance: Mapping[str, Any],
    ) -> RunRecord:
        identity = trial.identity
        tags = {
            ATTEMPT_TAG: attempt_id,
            "kind": "attempt",
            "config_hash": trial.hash,
            "sweep": self.sweep,
            "attempt": str(number),
            "driver_id": self.driver,
            "task": str((identity.get("task") or {}).get("name", "")),
            "model": model_label(identity),
            "engine": str((identity.get("engine") or {}).get("name", "")),
            "quant": format_name(identity.get("quant") or {}),
            **self._origin_tags(provenance),
        }
        if slot is not None:
            tags["host"] = slot.host
            tags["gpu_uuids"] = ",".join(slot.gpu_uuids)
        redact = self.redactor
        return RunRecord(
            key_tag=ATTEMPT_TAG,
            key=attempt_id,
            status=RUNNING,
            experiment=self.sweep,
            name=redact.text(
                trial_label(trial.axes, number, identity, self.labels.get(trial.hash))
            ),
            start_ms=_ms(started_at),
            parent=self.sweep_id,
            tags={k: tag_value(redact.text(v)) for k, v in tags.items() if v},
        )

    def _provenance(self, report: AttemptReport) -> dict[str, Any]:
        if not report.provenance:
            return dict(self.facts)
        # The node knows its own hardware and packages, not whose command it obeys.
        known = {k: self.facts[k] for k in ("git", "command") if k in self.facts}
        return {**known, **report.provenance}

    def _config(self, identity: Mapping[str, Any]) -> bytes:
        return config_yaml(self.redactor.value(identity))

    def _origin_tags(self, provenance: Mapping[str, Any]) -> dict[str, str]:
        tags = {USER_TAG: self.facts["user"]} if self.facts.get("user") else {}
        git = provenance.get("git") or {}
        if git.get("commit"):
            tags["git_commit"] = str(git["commit"])
            tags["git_dirty"] = str(bool(git.get("dirty"))).lower()
        return tags


def gpu_names(facts: Mapping[str, Any]) -> str:
    """The kinds of GPU of an attempt as the driver names them, each once; empty without one."""
    gpus = (facts.get("hardware") or {}).get("gpus") or ()
    return ", ".join(dict.fromkeys(str(gpu["name"]) for gpu in gpus if gpu.get("name")))


def lost_attempt(
    attempt: AttemptSummary, *, ended_at: float, reason: str
) -> tuple[dict[str, str], dict[str, bytes]]:
    """Tags and files of an attempt whose driver died before it could report."""
    slot = None
    if attempt.host:
        slot = Slot(node_id="", host=attempt.host, cpus=(), gpu_uuids=attempt.devices)
    report = AttemptReport(
        attempt.attempt_id,
        attempt.config_hash,
        Outcome.LOST,
        reason,
        number=attempt.number,
        sweep=attempt.sweep,
        started_at=attempt.started_at,
        ended_at=ended_at,
        slot=slot,
    )
    tags = {
        "outcome": Outcome.LOST.value,
        "verdict": report.verdict.state,
        "reason": tag_value(reason, REASON_CHARS),
    }
    return tags, {REPORT: to_json_bytes(report.to_json())}


def lost_record(begin: RunRecord, *, ended_at: float, reason: str) -> RunRecord:
    """A begun attempt of a dead driver, ended as lost."""
    tags, files = lost_attempt(summary_of_record("", begin), ended_at=ended_at, reason=reason)
    return replace(
        begin,
        status=status_of(Outcome.LOST),
        end_ms=_ms(ended_at),
        tags=begin.tags | tags,
        files=begin.files | files,
    )


def plan_json(plan: Plan) -> dict[str, Any]:
    """What a sweep was, without the trials' configurations (each is in its own runs)."""
    return {
        "version": 1,
        "sweep": plan.sweep,
        "description": plan.description,
        "axes": {key: list(values) for key, values in plan.axes.items()},
        "baseline": dict(plan.baseline),
        # No part of a trial, and yet of what its table says.
        "slo": asdict(plan.settings.slo),
        "trials": [
            {
                "hash": trial.hash,
                "axes": dict(trial.axes),
                "resources": asdict(trial.resources),
                "infeasible": trial.infeasible,
            }
            for trial in plan.trials
        ],
    }


def is_plan(recorded: Mapping[str, Any], plan: Plan) -> bool:
    """Whether the ``plan.json`` of a sweep's run is of ``plan``, however that was typed."""
    data = to_json_bytes(Redactor.of_environment().value(plan_json(plan)))
    planned: dict[str, Any] = json.loads(data)
    return {k: v for k, v in recorded.items() if k != "command"} == planned


def description(plan: Plan, command: Sequence[str], todo: int | None) -> str:
    """The sweep in Markdown, for the parent run's page."""
    lines = [plan.description.strip(), ""] if plan.description else []
    count = counted(len(plan.trials), "trial")
    if todo is not None:
        count += f", {counted(todo, 'attempt')} to run"
    lines += [f"**{count}**", ""]
    if plan.axes:
        lines += ["| axis | values |", "|---|---|"]
        for axis, values in plan.axes.items():
            shown = ", ".join(f"`{value}`" for value in values[:20])
            more = f" … {len(values)} in all" if len(values) > 20 else ""
            lines.append(f"| `{axis}` | {shown}{more} |")
        lines.append("")
    if plan.baseline:
        chosen = ", ".join(f"`{key}={value}`" for key, value in plan.baseline.items())
        lines += [f"Baseline: {chosen}", ""]
    if command:
        lines += ["```", *_folded(command), "```"]
    return tag_value("\n".join(lines).strip())


def _folded(command: Sequence[str]) -> list[str]:
    """A command as a shell reads it, in lines that a page need not cut off."""
    lines: list[str] = []
    for word in command:
        if lines and len(lines[-1]) + 1 + len(word) <= MAX_COMMAND_LINE_CHARS:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}" if lines else word)
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _ms(unix_s: float) -> int:
    return round(unix_s * 1000)
