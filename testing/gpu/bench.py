"""Runs attempts for the checks as the product runs them, isolated and watched, but without Ray."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.engines.transformers import PRELOAD
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import Absent, Samples, Value
from orchestrator.measure.registry import find_task
from orchestrator.telemetry.device import Device
from orchestrator.telemetry.watch import Telemetry
from testing.trial import make_identity, run_attempt

Identity = dict[str, Any]
Facts = dict[str, Any]

PROBE = "gpu_probe"
_ATTEMPT_S = 120.0
# Of a model on random weights: enough for a GPU to be busy, and made in a second.
SMALL = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


class Skip(Exception):
    """The check cannot be made here; the message says why."""


class Failure(AssertionError):
    """What was found is not what must be."""


def require(condition: object, message: str) -> None:
    """Raise :class:`Failure` with ``message`` unless ``condition``."""
    if not condition:
        raise Failure(message)


class Bench:
    """A place to run attempts on one device.

    Parameters
    ----------
    kind : str
        ``cuda``, or ``cpu`` to rehearse.
    devices : tuple of Device
        The GPUs this process may use; the first is measured. Empty on a CPU.
    directory : Path
        Empty; caches and whatever else the attempts leave goes there.
    limit_s : float
        For everything together.
    """

    def __init__(
        self, kind: str, devices: tuple[Device, ...], directory: Path, limit_s: float
    ) -> None:
        self.kind = kind
        self.devices = devices
        self.directory = directory
        self._deadline_s = time.monotonic() + limit_s
        self._plugged = self._plug_in_probe()
        self._isolation = Isolation(
            # One set for all tasks: another would be another server, and seconds of imports.
            preload=PRELOAD,
            env={"ORCHESTRATOR_CACHE": str(directory / "cache")},
        )

    @property
    def cuda(self) -> bool:
        """Whether a GPU is measured."""
        return self.kind == "cuda"

    def left_s(self) -> float:
        """Seconds that are left; raises :class:`Skip` where none are."""
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise Skip("the time for all checks together is over")
        return left_s

    def identity(self, quant: str = "fp32", **options: Any) -> Identity:
        """A trial on this device, by default of :data:`SMALL` on a GPU and of a tiny model here."""
        if self.cuda:
            options.setdefault("model", {"architecture": dict(SMALL)})
        return make_identity(quant, device=self.kind, **options)

    def attempt(
        self,
        identity: Identity,
        *,
        start: str = "fork",
        device: Device | None = None,
        memory_limit_bytes: int | None = None,
    ) -> AttemptReport:
        """Run it, however it ends; raises :class:`Skip` where its task says that it cannot be."""
        if reason := find_task(identity["task"]["name"]).check(identity):
            raise Skip(reason)
        uuids = tuple(d.uuid for d in (device or (self.devices[0] if self.devices else None),) if d)
        return run_attempt(
            self._isolation,
            identity,
            gpu_uuids=uuids,
            watch=Telemetry({}),
            timeout_s=min(_ATTEMPT_S, self.left_s()),
            start=start,
            start_timeout_s=self.left_s(),  # the first one's is torch's first import here
            memory_limit_bytes=memory_limit_bytes,
        )

    def measure(self, identity: Identity, **how: Any) -> AttemptReport:
        """An :meth:`attempt` that must end well, watched and with all its proofs."""
        report = self.attempt(identity, **how)
        if report.outcome is Outcome.INFEASIBLE:
            raise Skip(report.reason or "infeasible")
        if report.outcome is not Outcome.OK:
            sys.stderr.write(report.traceback or "")
            raise Failure(f"{identity['task']['name']}: {report.outcome.value}: {report.reason}")
        require("telemetry_error" not in report.facts, f"{report.facts.get('telemetry_error')}")
        failed = [proof.what for proof in report.engaged if not proof.ok]
        require(not failed, f"not as asked: {', '.join(failed)}")
        return report

    def probe(self, name: str, *, device: Device | None = None, **options: Any) -> AttemptReport:
        """:meth:`measure` what a function of ``probe.py`` does."""
        asked = self.identity(task=PROBE, probe=name, options=options)
        return self.measure(asked, device=device)

    def _plug_in_probe(self) -> str:
        """Install the probing task as a third party's: by an entry point, which children find."""
        info = self.directory / "plugged" / f"{PROBE}-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PROBE}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            f"[orchestrator.tasks]\n{PROBE} = testing.gpu.probe:TASK\n"
        )
        sys.path.append(str(info.parent))
        return str(info.parent)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._isolation.close()
        sys.path.remove(self._plugged)


def figure(report: AttemptReport, name: str) -> float:
    """A metric's value or median; raises :class:`Failure` where there is none."""
    found = {**report.telemetry, **report.metrics}.get(name)
    if isinstance(found, Value):
        return found.value
    if isinstance(found, Samples) and found.values:
        return statistics.median(found.values)
    reason = found.reason if isinstance(found, Absent) else "was not recorded"
    raise Failure(f"{name}: {reason}")


def figures(report: AttemptReport, *names: str) -> Facts:
    """Those of the metrics that are there, by name; of others the reason why they are not."""
    found: Mapping[str, Any] = {**report.telemetry, **report.metrics}
    return {
        name: figure(report, name)
        if isinstance(found.get(name), Value | Samples)
        else getattr(found.get(name), "reason", "was not recorded")
        for name in names
    }
