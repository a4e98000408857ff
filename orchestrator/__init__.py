"""A Ray-distributed experiment orchestrator for measuring language models.

The folders are the way of the data::

    overrides -> plan -> schedule -> isolate -> tasks (measure) -> record -> report
                                       `- telemetry watches -'

``orchestrator.results("quant")`` is what is recorded, as data (:mod:`orchestrator.record.tidy`).
"""

from importlib import import_module as _import
from typing import Any as _Any

__version__ = "0.1.0"
__all__ = ["__version__", "results"]


def __getattr__(name: str) -> _Any:
    # Found when it is first asked for: every measured process imports this file.
    if name == "results":
        return _import("orchestrator.record.tidy").results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
