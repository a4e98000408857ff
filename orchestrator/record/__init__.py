"""Keeps what was measured: MLflow behind a durable spool. The only room that imports MLflow.

Importing this package does not: MLflow is woken by the first write, or the first read of a server.
"""

from orchestrator.record.build import Findings
from orchestrator.record.liveness import driver_id
from orchestrator.record.opening import open_store, ui_arguments
from orchestrator.record.recording import Recording, RecordingSummary
from orchestrator.record.recover import reap, sync
from orchestrator.record.redact import Redactor
from orchestrator.record.store import Store
from orchestrator.record.summaries import AttemptSummary, SweepRun

__all__ = [
    "AttemptSummary",
    "Findings",
    "Recording",
    "RecordingSummary",
    "Redactor",
    "Store",
    "SweepRun",
    "driver_id",
    "open_store",
    "reap",
    "sync",
    "ui_arguments",
]
