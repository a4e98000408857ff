"""Which conditions this run could meet: what its trials' recorded attempts must have to count.

One machine is known without starting anything. On a cluster each node is asked, once and of all
trials together.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.attempt import Resources, Slot
from orchestrator.conditions import Conditions
from orchestrator.errors import ClusterError
from orchestrator.measure.grouping import grouped
from orchestrator.schedule.cluster.ray.cluster import joined
from orchestrator.schedule.kinds import Kind
from orchestrator.schedule.placement import Node, resolve, slots_on
from orchestrator.schedule.supervise.cores import allowed_cores, split
from orchestrator.schedule.surroundings import Identity, Surroundings
from orchestrator.telemetry.device import Device, devices, resolve_visible

if TYPE_CHECKING:
    from orchestrator.attempt import Trial
    from orchestrator.plan.schema import ClusterConfig


def possible(settings: ClusterConfig, trials: Iterable[Trial]) -> list[Kind]:
    """The kinds of node that there are, with the conditions of all ``trials`` that fit.

    Raises
    ------
    ClusterError
        The cluster cannot be reached.
    """
    trials = [trial for trial in trials if trial.infeasible is None]
    if not trials:
        return []
    if settings.kind == "local":
        return [_here(settings, trials)]
    cluster = joined(settings).ready()
    nodes = list(cluster.nodes())
    asked = _asked(trials, nodes)
    cpus = {node.host: node.cpus for node in nodes}
    wishes = list(asked.values())
    answers = cluster.ask_every_node(lambda: _answers(wishes, cpus))
    return kinds_of(
        {
            node: {
                config_hash: told
                for (config_hash, (_, demand)), told in zip(
                    asked.items(), answers[node.node_id], strict=True
                )
                if slots_on(node, demand)
            }
            for node in nodes
            if node.node_id in answers
        }
    )


def kinds_of(answers: Mapping[Node, Mapping[str, Sequence[Conditions]]]) -> list[Kind]:
    """Nodes that answered the same, together; without those on which nothing fits."""
    kinds: list[tuple[list[Node], Mapping[str, Sequence[Conditions]]]] = []
    for node, told in answers.items():
        alike = next((nodes for nodes, classes in kinds if classes == told), None)
        if alike is not None:
            alike.append(node)
        elif told:
            kinds.append(([node], told))
    return [Kind(tuple(nodes), classes) for nodes, classes in kinds]


def _here(settings: ClusterConfig, trials: Sequence[Trial]) -> Kind:
    seen = resolve_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), devices())
    gpus = len(seen) if settings.gpus is None else settings.gpus
    place = _Place(settings.cpus, seen[:gpus])
    node = Node("", place.host, settings.cpus or len(place.cores), gpus)
    asked = _asked(trials, [node])
    return Kind((node,), {config_hash: place.classes(*wish) for config_hash, wish in asked.items()})


def _asked(trials: Iterable[Trial], nodes: Sequence[Node]) -> dict[str, tuple[Identity, Resources]]:
    """What each trial needs; without those that no node can run, of which the run will say so."""
    demands: dict[Resources, Resources | None] = {}
    for wish in {trial.resources for trial in trials}:
        try:
            demands[wish] = resolve(wish, nodes)
        except ClusterError:
            demands[wish] = None
    return {
        trial.hash: (trial.measured, demand)
        for trial in trials
        if (demand := demands[trial.resources]) is not None
    }


def _answers(
    asked: Sequence[tuple[Identity, Resources]], cpus: dict[str, int]
) -> list[list[Conditions]]:
    """Of the node this runs on."""
    place = _Place(cpus.get(socket.gethostname()), devices())
    return [place.classes(identity, demand) for identity, demand in asked]


class _Place:
    """This host as attempts would find it: its measured cores and its kinds of GPU."""

    def __init__(self, cpus: int | None, gpus: Sequence[Device]) -> None:
        self.host = socket.gethostname()
        self.cores = split(allowed_cores(), cpus).measured
        self._surroundings = Surroundings(gpus)
        alike = grouped(gpus, lambda gpu: (gpu.name, gpu.memory_bytes, gpu.power_limit_w))
        self._kinds = [tuple(gpu.uuid for gpu in kind) for kind in alike.values()]
        self._found: dict[str, Conditions] = {}

    def classes(self, identity: Identity, demand: Resources) -> list[Conditions]:
        """One a kind of GPU; which of equal cores and GPUs it gets makes no difference."""
        choices = [uuids[: demand.gpus] for uuids in self._kinds] if demand.gpus else [()]
        cores = self.cores[: demand.cpus]
        found = [
            self._surroundings.of(
                identity, Slot("", self.host, cores, uuids, ",".join(uuids), demand.memory_bytes)
            )
            for uuids in choices
        ]
        # Equal ones are one object: thousands of trials travel as a few.
        return [self._found.setdefault(repr(one), one) for one in found]
