"""Keeps what was measured: MLflow behind a durable spool. The only room that imports MLflow.

Importing this package does not: MLflow is woken by the first write, or the first read of a server.
"""

from orchestrator.record.build import Findings
from orchestrator.record.liveness import driver_id
from orchestrator.record.opening import open_store, ui_arguments
from orchestrator.record.provenance import node_provenance, provenance
from orchestrator.record.recording import Recording, RecordingSummary
from orchestrator.record.recover import ReapSummary, SyncSummary, reap, sync
from orchestrator.record.redact import Redactor
from orchestrator.record.run_names import trial_label
from orchestrator.record.store import AttemptSummary, Store, SweepRun

__all__ = [
    "AttemptSummary",
    "Findings",
    "ReapSummary",
    "Recording",
    "RecordingSummary",
    "Redactor",
    "Store",
    "SweepRun",
    "SyncSummary",
    "driver_id",
    "node_provenance",
    "open_store",
    "provenance",
    "reap",
    "sync",
    "trial_label",
    "ui_arguments",
]
