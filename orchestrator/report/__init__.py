"""What a person sees: the live view, tables, exports, plots, comparisons. Imports nothing heavy."""

from orchestrator.report.analyse.labels import labels_of, short_hash
from orchestrator.report.analyse.rows import SweepTable, build_table
from orchestrator.report.show.live import LiveView
from orchestrator.report.show.table import final_table, run_json, where_to_look

__all__ = [
    "LiveView",
    "SweepTable",
    "build_table",
    "final_table",
    "labels_of",
    "run_json",
    "short_hash",
    "where_to_look",
]
