"""What a trial asks against what nodes have: slots, and what can never be placed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.attempt import Resources
from orchestrator.errors import ClusterError
from orchestrator.measure.wording import counted, gib


@dataclass(frozen=True)
class Node:
    """One node's totals, not what is free of them."""

    node_id: str
    host: str
    cpus: int
    gpus: int = 0
    memory_bytes: int | None = None
    accelerators: frozenset[str] = frozenset()


def slots_on(node: Node, demand: Resources) -> int:
    """How many attempts of ``demand`` fit on ``node`` at once."""
    if demand.accelerator and demand.accelerator not in node.accelerators:
        return 0
    fits = [node.cpus // (demand.cpus or 1)]
    if demand.gpus:
        fits.append(node.gpus // demand.gpus)
    if demand.memory_bytes and node.memory_bytes is not None:
        fits.append(node.memory_bytes // demand.memory_bytes)
    return max(0, min(fits))


def slots(nodes: Iterable[Node], demand: Resources) -> int:
    """How many attempts of ``demand`` fit on ``nodes`` at once."""
    return sum(slots_on(node, demand) for node in nodes)


def first_place(
    nodes: Sequence[Node], demand: Resources, places: Iterable[frozenset[str]]
) -> Sequence[Node]:
    """Of ``nodes`` those of the first of ``places`` that can hold ``demand``; all if none can."""
    for place in places:
        there = [node for node in nodes if node.node_id in place]
        if slots(there, demand):
            return there
    return nodes


def resolve(resources: Resources, nodes: Sequence[Node]) -> Resources:
    """Close what a trial left open, the same for every attempt of the sweep.

    ``cpus`` None is a whole node without GPUs (the smallest that fits: a measurement must not
    change its thread count with the node it lands on), or a GPU's fair share of its node's cores.

    Raises
    ------
    ClusterError
        No node can ever hold it (Ray would wait for ever without a word); names the largest node.
    """
    able = [node for node in nodes if slots_on(node, resources)]
    if not able:
        raise ClusterError(f"no node has {resources}", where="resources", fix=_largest(nodes))
    if resources.cpus:
        return resources
    if resources.gpus:
        cpus = min(max(1, node.cpus * resources.gpus // node.gpus) for node in able)
    else:
        without_gpus = [node for node in able if not node.gpus]
        cpus = min(node.cpus for node in without_gpus or able)
    return replace(resources, cpus=cpus)


def _largest(nodes: Sequence[Node]) -> str:
    if not nodes:
        return "The cluster has no nodes"
    node = max(nodes, key=lambda node: (node.gpus, node.cpus, node.memory_bytes or 0))
    kinds = "/".join(sorted(node.accelerators))
    has = [counted(node.gpus, f"{kinds} GPU".strip()), counted(node.cpus, "CPU core")]
    if node.memory_bytes:
        has.append(f"{gib(node.memory_bytes)} memory")
    return f"The largest node ({node.host}) has {', '.join(has)}"
