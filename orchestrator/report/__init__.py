"""What a person sees: the live view, tables, exports, plots, comparisons. Imports nothing heavy."""

from orchestrator.report.labels import label, labels_of, short_hash
from orchestrator.report.live import LiveView
from orchestrator.report.rows import SweepTable, build_table
from orchestrator.report.table import final_table, run_json, where_to_look

__all__ = [
    "LiveView",
    "SweepTable",
    "build_table",
    "final_table",
    "label",
    "labels_of",
    "run_json",
    "short_hash",
    "where_to_look",
]
