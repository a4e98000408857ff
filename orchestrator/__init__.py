"""A Ray-distributed experiment orchestrator for measuring language models.

The folders are the way of the data::

    overrides -> plan -> schedule -> isolate -> tasks (measure) -> record -> report
                                       `- telemetry watches -'
"""

__version__ = "0.1.0"
