"""A fresh process per attempt: warm fork server, limits from outside, every ending named."""

from orchestrator.isolate.isolation import Isolation
from orchestrator.isolate.ledger import Progress
from orchestrator.isolate.observer import AttemptObserver, Observations

__all__ = ["AttemptObserver", "Isolation", "Observations", "Progress"]
