"""Which conditions this run could meet: what its trials' recorded attempts must have to count.

One machine is known without starting anything. On a cluster each node is asked, once and all
together, of the trials that have attempts already.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from orchestrator.attempt import Resources, Slot
from orchestrator.conditions import Conditions
from orchestrator.errors import ClusterError
from orchestrator.measure.grouping import grouped
from orchestrator.schedule.cluster.ray.cluster import PendingCluster
from orchestrator.schedule.placement import Node, resolve, slots_on
from orchestrator.schedule.supervise.cores import allowed_cores, split
from orchestrator.schedule.surroundings import Identity, Surroundings
from orchestrator.telemetry.device import Device, devices, resolve_visible

if TYPE_CHECKING:
    from orchestrator.attempt import Trial
    from orchestrator.plan.schema import ClusterConfig


def possible(settings: ClusterConfig, trials: Iterable[Trial]) -> dict[str, list[Conditions]]:
    """Conditions by config hash, of all ``trials`` that the cluster could run.

    Raises
    ------
    ClusterError
        The cluster cannot be reached.
    """
    trials = [trial for trial in trials if trial.infeasible is None]
    if not trials:
        return {}
    if settings.kind == "local":
        return _here(settings, trials)
    with PendingCluster(settings) as pending:
        cluster = pending.ready()
        nodes = list(cluster.nodes())
        asked = _asked(trials, nodes)
        cpus = {node.host: node.cpus for node in nodes}
        wishes = list(asked.values())
        answers = cluster.ask_every_node(lambda: _answers(wishes, cpus))
    found: dict[str, list[Conditions]] = {trial.hash: [] for trial in trials}
    for node in nodes:
        for (config_hash, (_, demand)), told in zip(
            asked.items(), answers.get(node.node_id, ()), strict=False
        ):
            if slots_on(node, demand):
                found[config_hash] += [one for one in told if one not in found[config_hash]]
    return found


def _here(settings: ClusterConfig, trials: Sequence[Trial]) -> dict[str, list[Conditions]]:
    seen = resolve_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), devices())
    gpus = len(seen) if settings.gpus is None else settings.gpus
    place = _Place(settings.cpus, seen[:gpus])
    node = Node("", place.host, settings.cpus or len(place.cores), gpus)
    return {trial.hash: [] for trial in trials} | {
        config_hash: place.classes(identity, demand)
        for config_hash, (identity, demand) in _asked(trials, [node]).items()
    }


def _asked(trials: Iterable[Trial], nodes: Sequence[Node]) -> dict[str, tuple[Identity, Resources]]:
    """What each trial needs; without those that no node can run, of which the run will say so."""
    demands: dict[Resources, Resources | None] = {}
    for wish in {trial.resources for trial in trials}:
        try:
            demands[wish] = resolve(wish, nodes)
        except ClusterError:
            demands[wish] = None
    return {
        trial.hash: (trial.identity, demand)
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

    def classes(self, identity: Identity, demand: Resources) -> list[Conditions]:
        """One a kind of GPU; which of equal cores and GPUs it gets makes no difference."""
        choices = [uuids[: demand.gpus] for uuids in self._kinds] if demand.gpus else [()]
        cores = self.cores[: demand.cpus]
        return [
            self._surroundings.of(
                identity, Slot("", self.host, cores, uuids, ",".join(uuids), demand.memory_bytes)
            )
            for uuids in choices
        ]
