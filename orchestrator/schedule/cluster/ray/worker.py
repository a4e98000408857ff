"""What Ray runs in a worker: reads what it was granted, and supervises the attempt there."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import cache

from orchestrator.attempt import AttemptReport, PlannedAttempt
from orchestrator.schedule.events import ClusterEvent, Ended
from orchestrator.schedule.supervise.supervisor import Cancellation, Grant, attempt_events

KEY_VALUE_NAMESPACE = b"orchestrator"


def supervise(attempt: PlannedAttempt) -> Iterator[ClusterEvent]:
    """The Ray task: yields events, the last one with the report.

    A cancelled attempt's report cannot be yielded (Ray refuses values of a cancelled task): it is
    left in the cluster's key-value store under the attempt's id.
    """
    with Cancellation() as cancellation:
        for event in attempt_events(attempt, _grant(), cancellation):
            if not cancellation.asked:
                yield event
            elif isinstance(event, Ended):
                leave_report(event)


def leave_report(event: Ended) -> None:
    """Put a cancelled attempt's report where the driver will look for it."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(
        event.attempt_id.encode(), pickle.dumps(event.report), namespace=KEY_VALUE_NAMESPACE
    )


def fetch_report(attempt_id: str) -> AttemptReport | None:
    """The report that a cancelled attempt left behind, once."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get

    key = attempt_id.encode()
    found = _internal_kv_get(key, namespace=KEY_VALUE_NAMESPACE)
    if found is None:
        return None
    _internal_kv_del(key, namespace=KEY_VALUE_NAMESPACE)
    report: AttemptReport = pickle.loads(found)
    return report


def _grant() -> Grant:
    import ray

    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    gpu_ids = tuple(map(str, context.get_accelerator_ids().get("GPU", ())))
    return Grant(node_id, _node_cpus(node_id), gpu_ids)


@cache
def _node_cpus(node_id: str) -> int:
    import ray

    for node in ray.nodes():
        if node["NodeID"] == node_id:
            return int(node["Resources"].get("CPU", 1))
    return 1
