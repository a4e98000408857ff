"""Whether a joined cluster may run a sweep, asked before anything runs on it.

Every node must have the versions this driver has, and results must be where everybody who uses the
cluster finds them. A node that joins later is not asked.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from orchestrator import __version__
from orchestrator.errors import ClusterError

if TYPE_CHECKING:
    from orchestrator.plan.schema import TrackingConfig
    from orchestrator.schedule.cluster.ray.cluster import RayCluster

# What decides how a measured process behaves; everything else is in each attempt's provenance.
PACKAGES = ("ray", "torch", "transformers", "bitsandbytes")
MOST_NAMED = 3


def admit(cluster: RayCluster, tracking: TrackingConfig) -> None:
    """Compare a joined cluster with this driver.

    Raises
    ------
    ClusterError
        A node has another version of something: names the node, what it is, and both versions. Or
        the cluster has several nodes and results would be recorded on this host alone.
    """
    hosts = {node.node_id: node.host for node in cluster.nodes()}
    if len(hosts) > 1 and tracking.kind == "embedded" and not tracking.local_on_cluster:
        raise ClusterError(
            f"{len(hosts)} nodes measure, and {tracking.root}/ of this host has the results",
            where="tracking=embedded",
            fix="Use tracking=server tracking.uri=http://HOST:PORT, or confirm: "
            "tracking.local_on_cluster=true",
        )
    found = cluster.ask_every_node(versions_here)
    refuse_differences(versions_here(), [(hosts[node], there) for node, there in found.items()])


def versions_here() -> dict[str, str]:
    """Versions in this process: of Python, this program and :data:`PACKAGES`."""
    found = {"python": platform.python_version(), "orchestrator": __version__}
    for name in PACKAGES:
        try:
            # A build for CPUs ("2.13.0+cpu") may drive one for GPUs.
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def refuse_differences(
    here: Mapping[str, str], nodes: Sequence[tuple[str, Mapping[str, str]]]
) -> None:
    """Raise :class:`ClusterError` if any of ``nodes`` (host, versions) differs from ``here``."""
    found = [
        f"{host} has {name} {there.get(name, 'unknown')}, this driver {wanted}"
        for host, there in nodes
        for name, wanted in here.items()
        if there.get(name) != wanted
    ]
    if not found:
        return
    more = f" (and {len(found) - MOST_NAMED} more)" if len(found) > MOST_NAMED else ""
    raise ClusterError(
        "; ".join(found[:MOST_NAMED]) + more,
        where="versions",
        fix="Install the same everywhere: pip install -c constraints.txt -e .",
    )
