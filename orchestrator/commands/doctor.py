"""``doctor``: what this machine can do, a line each, with the fix."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.commands.findings import Finding, examine
from orchestrator.commands.output import emit_json
from orchestrator.measure.grouping import grouped
from orchestrator.plan.expand import settings_of


def doctor_command(overrides: Sequence[str], simulate: Path | None, as_json: bool) -> int:
    """Findings, one a line; exit 1 when one of them is a failure.

    With ``simulate`` the GPUs are a scenario's, and the verdict policy is tried on them for a few
    seconds as if they were being measured.
    """
    reads = ("tracking", "verdict") if simulate is not None else ("tracking",)
    settings = settings_of(overrides, of="doctor", reads=reads)
    with contextlib.ExitStack() as stack:
        if simulate is not None:
            from orchestrator.telemetry.simulate.library import simulated

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-nvml-"))
            stack.enter_context(simulated(simulate, Path(folder)))
        findings = examine(Path(settings.tracking.root))
        if simulate is not None:
            findings.extend(_rehearsed(asdict(settings.verdict)))
    if as_json:
        emit_json([asdict(finding) for finding in findings])
    else:
        console = Console(highlight=False)
        styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
        for finding in findings:
            line = Text.assemble((f"{finding.level:<4} ", styles[finding.level]), finding.what)
            if finding.fix:
                line.append(f"  →  {finding.fix}", style="dim")
            console.print(line, soft_wrap=True)
    return 1 if any(finding.level == "fail" for finding in findings) else 0


def _rehearsed(verdict: dict[str, Any], seconds: float = 3.0) -> Iterator[Finding]:
    """What the verdict policy says of the GPUs here, one finding a rule that did not pass."""
    from orchestrator.telemetry.simulate.rehearsal import rehearse

    judged = rehearse(verdict, seconds=seconds).verdict
    level = {"valid": "ok", "invalid": "fail"}.get(judged.state, "warn")
    yield Finding(level, f"a measurement here would be {judged.state}")
    for rule in judged.rules:
        if rule.state in ("flagged", "invalid"):
            said = rule.reason or f"{rule.value}, limit {rule.limit}"
            level = "fail" if rule.state == "invalid" else "warn"
            yield Finding(level, f"{rule.rule}: {said}", f"verdict.rules.{rule.rule}.limit=…")
    unknown = [rule for rule in judged.rules if rule.state == "unknown"]
    for reason, rules in grouped(unknown, lambda r: r.reason or "no reason given").items():
        named = ", ".join(rule.rule for rule in rules)
        yield Finding("warn", f"not to be checked: {named}: {reason}")
