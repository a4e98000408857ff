"""What a person sees: the live view, tables, exports, plots, comparisons. Imports nothing heavy."""

from orchestrator.report.analyse.labels import labels_of
from orchestrator.report.analyse.rows import build_table
from orchestrator.report.show.live import LiveView
from orchestrator.report.show.table import final_table

__all__ = ["LiveView", "build_table", "final_table", "labels_of"]
