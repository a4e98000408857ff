"""When to stop repeating: one rule a file, each a pure decision over the samples so far."""

from orchestrator.measure.stopping.confidence import WithinConfidence
from orchestrator.measure.stopping.protocol import StoppingProtocol
from orchestrator.measure.stopping.repetitions import MaxRepetitions
from orchestrator.measure.stopping.rule import Progress, Rule
from orchestrator.measure.stopping.time_cap import MaxTime

__all__ = [
    "MaxRepetitions",
    "MaxTime",
    "Progress",
    "Rule",
    "StoppingProtocol",
    "WithinConfidence",
]
