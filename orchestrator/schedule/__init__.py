"""The driver: what is left to do, where it runs, what is tried again. Only here is ray imported."""

from orchestrator.schedule.cluster.ray.cluster import (
    PendingCluster,
    cluster_device_kind,
    emergency_stop,
    start_async,
)
from orchestrator.schedule.cluster.simulated import Fate, SimulatedCluster
from orchestrator.schedule.driver import SweepResult, run_sweep
from orchestrator.schedule.order import interleave
from orchestrator.schedule.placement import Demand, Node
from orchestrator.schedule.policy import Retry, retry_policy
from orchestrator.schedule.ports import ClusterPort, RecordingPort, ViewPort
from orchestrator.schedule.todo import Attempt, Todo, compute_todo

__all__ = [
    "Attempt",
    "ClusterPort",
    "Demand",
    "Fate",
    "Node",
    "PendingCluster",
    "RecordingPort",
    "Retry",
    "SimulatedCluster",
    "SweepResult",
    "Todo",
    "ViewPort",
    "cluster_device_kind",
    "compute_todo",
    "emergency_stop",
    "interleave",
    "retry_policy",
    "run_sweep",
    "start_async",
]
