"""Which conditions this run could meet: what its trials' recorded attempts must have to count.

One machine is known without starting anything. On a cluster each node is asked, once and all
together, of the trials that have attempts already.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.attempt import Resources, Slot
from orchestrator.conditions import Conditions
from orchestrator.errors import ClusterError
from orchestrator.measure.grouping import grouped
from orchestrator.schedule.cluster.ray.cluster import PendingCluster
from orchestrator.schedule.placement import Node, resolve, slots_on
from orchestrator.schedule.supervise.cores import allowed_cores, split
from orchestrator.schedule.surroundings import Identity, conditions_on
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
        answers = cluster.ask_every_node(partial(_answers, list(asked.values()), cpus))
    found: dict[str, list[Conditions]] = {trial.hash: [] for trial in trials}
    for node in nodes:
        for (config_hash, (_, demand)), told in zip(
            asked.items(), answers.get(node.node_id, ()), strict=False
        ):
            if slots_on(node, demand):
                found[config_hash] += [one for one in told if one not in found[config_hash]]
    return found


def _here(settings: ClusterConfig, trials: Sequence[Trial]) -> dict[str, list[Conditions]]:
    cores = split(allowed_cores(), settings.cpus).measured
    known = devices()
    seen = resolve_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), known)
    gpus = len(seen) if settings.gpus is None else settings.gpus
    node = Node("", socket.gethostname(), settings.cpus or len(cores), gpus)
    return {trial.hash: [] for trial in trials} | {
        config_hash: _on(identity, demand, cores, seen[:gpus])
        for config_hash, (identity, demand) in _asked(trials, [node]).items()
    }


def _asked(trials: Iterable[Trial], nodes: Sequence[Node]) -> dict[str, tuple[Identity, Resources]]:
    """What each trial needs; without those that no node can run, of which the run will say so."""
    found: dict[str, tuple[Identity, Resources]] = {}
    for trial in trials:
        try:
            found[trial.hash] = (trial.identity, resolve(trial.resources, nodes))
        except ClusterError:
            continue
    return found


def _answers(
    asked: Sequence[tuple[Identity, Resources]], cpus: dict[str, int]
) -> list[list[Conditions]]:
    """Of the node this runs on."""
    cores = split(allowed_cores(), cpus.get(socket.gethostname())).measured
    return [_on(identity, demand, cores, devices()) for identity, demand in asked]


def _on(
    identity: Identity, demand: Resources, cores: Sequence[int], gpus: Sequence[Device]
) -> list[Conditions]:
    """One a kind of GPU; which of equal cores and GPUs it gets makes no difference."""
    kinds = grouped(gpus, lambda device: (device.name, device.memory_bytes, device.power_limit_w))
    choices = [alike[: demand.gpus] for alike in kinds.values()] if demand.gpus else [[]]
    found = []
    for chosen in choices:
        uuids = tuple(device.uuid for device in chosen)
        slot = Slot(
            node_id="",
            host=socket.gethostname(),
            cpus=tuple(cores[: demand.cpus]),
            gpu_uuids=uuids,
            cuda_visible_devices=",".join(uuids),
            memory_bytes=demand.memory_bytes,
        )
        found.append(conditions_on(identity, slot, chosen))
    return found
