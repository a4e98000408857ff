"""Sweeps over several real Ray nodes: what travels, what is compared, who gets what."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ClusterError
from orchestrator.schedule.cluster.ray.admission import refuse_differences, versions_here
from orchestrator.schedule.cluster.ray.affinity import ModelAffinity
from orchestrator.schedule.placement import Node
from testing.commands import orchestrator
from testing.waiting import PATIENCE_S, until
from testing.world import Nodes, World

ROOT = Path(__file__).resolve().parents[2]
NOOP = ("task=noop", "device=cpu", "resources.cpus=1", "telemetry.enabled=false", "preflight=off")


@pytest.fixture(scope="module")
def nodes_world() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.fixture(scope="module")
def nodes(nodes_world: World) -> Iterator[Nodes]:
    """A head without slots, and two nodes with one each."""
    made = Nodes(nodes_world, 2, slots=1)
    yield made
    made.close()


def driver(
    world: World, nodes: Nodes, *words: str, cwd: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words, "cluster=ray",
         f"cluster.address={nodes.address}"],
        cwd=cwd or world.directory,
        env={**world.environment, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def used_in(root: Path) -> set[str]:
    """Nodes that the attempts recorded in ``root`` ran on."""
    found = set()
    for path in root.rglob("report.json"):
        with contextlib.suppress(ValueError):  # being written
            found.add(json.loads(path.read_text())["slot"]["node_id"])
    return found


@pytest.mark.long
def test_the_code_and_conf_of_a_checkout_travel(
    nodes_world: World, nodes: Nodes, checkout: Path
) -> None:
    environment = {"PYTHONPATH": str(checkout)}
    words = (*NOOP, "protocol=mine", "task.value=1,2,3,4", "task.sleep_s=1",
             "tracking.local_on_cluster=true", "--json")  # fmt: skip
    code, out, err = ended(driver(nodes_world, nodes, *words, cwd=checkout, **environment))
    assert code == 0, err
    assert json.loads(out)["outcomes"] == {"ok": 4}
    reports = [json.loads(p.read_text()) for p in (checkout / "mlruns").rglob("report.json")]
    assert sorted(r["metrics"]["value"]["value"] for r in reports) == [1001, 1002, 1003, 1004]
    assert len({r["slot"]["node_id"] for r in reports}) == 2, "both nodes were used"


@pytest.mark.long
def test_a_node_that_joins_is_used_and_another_terminal_sees_and_stops_it(
    nodes_world: World, nodes: Nodes
) -> None:
    words = (*NOOP, "task.value=range(100)", "task.sleep_s=1.5", "tracking.root=joined",
             "tracking.local_on_cluster=true", "sweep.name=joining", "--json")  # fmt: skip
    running = driver(nodes_world, nodes, *words)
    place = nodes_world.directory
    try:
        before = {node.node_id for node in nodes.alive}
        until(lambda: used_in(place / "joined") >= before)
        nodes.add()
        until(lambda: used_in(place / "joined") > before)
        (state,) = orchestrator(place, "status", "tracking.root=joined", "--json").json
        assert (state["sweep"], state["alive"]) == ("joining", True)
        assert len(state["running"]) <= 3
        assert orchestrator(place, "cancel", "joining", "tracking.root=joined").code == 0
    finally:
        code, out, err = ended(running)
    assert code == 130, err
    assert "asked to stop from another terminal" in err
    assert set(json.loads(out)["outcomes"]) == {"ok", "cancelled"}


@pytest.mark.long
def test_another_version_on_a_node_is_named_before_anything_runs(
    nodes_world: World, nodes: Nodes, tmp_path: Path
) -> None:
    """A node whose interpreter finds another transformers first, as its metadata says."""
    metadata = tmp_path / "other" / "transformers-4.0.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformers\nVersion: 4.0.0\n"
    )
    nodes.add(PYTHONPATH=f"{metadata.parent}:{ROOT}")
    try:
        words = (*NOOP, "tracking.root=versions", "tracking.local_on_cluster=true")
        code, _, err = ended(driver(nodes_world, nodes, *words))
    finally:
        nodes.kill(len(nodes.alive) - 1)
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: versions: ")
    here = versions_here()["transformers"]
    assert f"has transformers 4.0.0, this driver {here}" in last
    assert last.count(" has ") == 1, "nothing else differs"
    assert not list((nodes_world.directory / "versions").rglob("report.json"))


def hosts_of(root: Path) -> dict[float, str]:
    """The node that each value was measured on."""
    reports = [json.loads(path.read_text()) for path in root.rglob("report.json")]
    return {r["metrics"]["value"]["value"]: r["slot"]["node_id"] for r in reports}


@pytest.mark.long
def test_what_is_compared_is_measured_on_one_kind_of_node(nodes_world: World, nodes: Nodes) -> None:
    """Nodes differ by a variable that chooses kernels; most room wins, then what was measured."""
    plain = {node.node_id for node in nodes.alive}
    words = (*NOOP, "tracking.root=kinds", "tracking.local_on_cluster=true", "--json")
    other = [nodes.add(MKL_CBWR="AVX2")]
    try:
        code, _, err = ended(driver(nodes_world, nodes, *words, "task.value=1,2,3,4,5,6"))
        assert code == 0, err
        assert "several kinds of node: what is compared runs on nodes like" in err
        assert set(hosts_of(nodes_world.directory / "kinds").values()) <= plain
        other += [nodes.add(MKL_CBWR="AVX2") for _ in plain]
        code, out, err = ended(driver(nodes_world, nodes, *words, "task.value=1,2,7,8,9"))
        assert code == 0, err
        assert json.loads(out)["outcomes"] == {"ok": 3}
        found = hosts_of(nodes_world.directory / "kinds")
        assert set(found) == {1, 2, 3, 4, 5, 6, 7, 8, 9}
        assert set(found.values()) <= plain
    finally:
        for _ in other:
            nodes.kill(len(nodes.alive) - 1)


PLACED = """
import json, os, sys, threading, time
from pathlib import Path
from orchestrator.attempt import Resources
from orchestrator.errors import ClusterError
from orchestrator.plan.schema import ClusterConfig, Settings, TelemetryConfig
from orchestrator.attempt import Trial
from orchestrator.schedule.cluster.ray.cluster import PendingCluster
from orchestrator.schedule.driver import run_sweep
from orchestrator.attempt import PlannedAttempt
from types import SimpleNamespace

address, wanted = sys.argv[1], json.loads(sys.argv[2])
settings = Settings(cluster=ClusterConfig(kind="ray", address=address),
                    telemetry=TelemetryConfig(enabled=False))
plan = SimpleNamespace(sweep="placed", settings=settings, trials=())

class Port:
    def __init__(self): self.reports = []
    def finish(self, report, trial): self.reports.append(report)
    def __getattr__(self, name): return lambda *a, **k: None

def all_slots_free():
    # Ray gives a slot back a moment after the attempt's report is here.
    import ray
    until = time.monotonic() + 20
    while time.monotonic() < until:
        free, there = ray.available_resources(), ray.cluster_resources()
        if free.get("CPU") == there.get("CPU") and free.get("GPU") == there.get("GPU"):
            return
        time.sleep(0.05)

found, preferred = [], []
with PendingCluster(settings.cluster) as pending:
    cluster = pending.ready()
    prefer = cluster._preference
    cluster._preference = lambda node_id: preferred.append(node_id) or prefer(node_id)
    for number, (resources, model, sleep_s) in enumerate(wanted):
        identity = {"schema": 1, "task": {"name": "noop", "value": number, "sleep_s": sleep_s},
                    "model": model, "quant": {}, "protocol": {},
                    "device": {"kind": "cpu", "threads": None}, "seed": 0}
        trial = Trial(f"{number:064x}", identity, resources=Resources(**resources), timeout_s=60)
        port = Port()
        preferred.clear()
        all_slots_free()
        try:
            run_sweep(plan, [PlannedAttempt(trial, 1)], recording=port, view=Port(), seed=0,
                      stop=threading.Event(), cluster=cluster)
        except ClusterError as error:
            found.append({"refused": str(error)})
            continue
        report = port.reports[-1]  # after a lost one, where Ray had not noticed a death yet
        found.append({"outcome": report.outcome.value, "node": report.slot.node_id,
                      "visible": report.slot.cuda_visible_devices, "preferred": preferred[-1:]})
print(json.dumps(found))
"""


@pytest.mark.long
def test_heterogeneous_nodes(nodes_world: World, nodes: Nodes) -> None:
    """Kinds of GPU by their label, several GPUs of one node, memory, nodes without GPUs, homes."""
    label = "ray.io/accelerator-type"
    h100 = nodes.add(num_gpus=2, labels={label: "H100"}, memory=3 * 2**30)
    a100 = nodes.add(num_gpus=1, labels={label: "A100"}, memory=1 * 2**30)
    plain = {node.node_id for node in nodes.alive} - {h100.node_id, a100.node_id}
    one = {"cpus": 1}
    wanted = [
        ({**one, "gpus": 1, "accelerator": "A100"}, {}, 0),
        ({**one, "gpus": 1, "accelerator": "H100"}, {}, 0),
        ({**one, "gpus": 2}, {}, 0),
        ({**one, "gpus": 3}, {}, 0),
        ({**one, "gpus": 1, "memory_bytes": 2 * 2**30}, {}, 0),
        ({**one, "gpus": 1, "accelerator": "V100"}, {}, 0),
        (one, {}, 0),
        # Once its model is somewhere, a trial is to go there.
        *[(one, {"source": "packaged", "id": "x"}, 0)] * 3,
    ]
    try:
        found = placed(nodes_world, nodes, wanted)
    finally:
        for _ in range(2):
            nodes.kill(len(nodes.alive) - 1)
    assert [f.get("node") for f in found[:3]] == [a100.node_id, h100.node_id, h100.node_id]
    assert {f["outcome"] for f in found if "outcome" in f} == {"ok"}
    assert sorted(found[2]["visible"].split(",")) == ["0", "1"]
    assert "no node has 3 GPUs" in found[3]["refused"]
    assert found[4]["node"] == h100.node_id
    assert "no node has 1 V100" in found[5]["refused"]
    assert found[6]["node"] in plain, "what needs no GPU stays off nodes that have some"
    # Whether there is room at that moment is Ray's to say.
    first, *later = found[7:]
    assert first["preferred"] == []
    had = {first["node"]}
    for trial in later:
        # A node that has GPUs is left to those who need one.
        assert trial["preferred"] or had <= {h100.node_id, a100.node_id}
        assert set(trial["preferred"]) <= had
        had.add(trial["node"])


MOVED = """
import json, sys, threading
from types import SimpleNamespace
from orchestrator.attempt import PlannedAttempt, Resources, Trial
from orchestrator.plan.schema import ClusterConfig, Settings, TelemetryConfig
from orchestrator.schedule.cluster.ray.cluster import PendingCluster
from orchestrator.schedule.driver import run_sweep

address, places = sys.argv[1], tuple(map(frozenset, json.loads(sys.argv[2])))
settings = Settings(cluster=ClusterConfig(kind="ray", address=address),
                    telemetry=TelemetryConfig(enabled=False))
plan = SimpleNamespace(sweep="moved", settings=settings, trials=())

class Port:
    def started(self, attempt, slot): print(json.dumps(["began", slot.node_id]), flush=True)
    def message(self, text): print(json.dumps(["said", text]), flush=True)
    def __getattr__(self, name): return lambda *a, **k: None

class Recording:
    def finish(self, report, trial):
        node = report.slot and report.slot.node_id
        print(json.dumps([report.outcome.value, node, report.config_hash]), flush=True)
    def __getattr__(self, name): return lambda *a, **k: None

todo = []
for value in range(4):
    identity = {"schema": 1, "task": {"name": "noop", "value": value, "sleep_s": 0.5}, "model": {},
                "quant": {}, "protocol": {}, "device": {"kind": "cpu", "threads": None}, "seed": 0}
    trial = Trial(f"{value:064x}", identity, resources=Resources(cpus=1), timeout_s=60)
    todo.append(PlannedAttempt(trial, places=places))
with PendingCluster(settings.cluster) as pending:
    run_sweep(plan, todo, recording=Recording(), view=Port(), seed=0, stop=threading.Event(),
              cluster=pending.ready())
"""


@pytest.mark.long
def test_what_waits_for_a_kind_of_node_that_dies_runs_on_the_next(
    nodes_world: World, nodes: Nodes
) -> None:
    """Ray would let it wait for ever for the nodes that its labels name."""
    plain = [node.node_id for node in nodes.alive]
    wanted = nodes.add()
    words = [nodes.address, json.dumps([[wanted.node_id], plain])]
    with subprocess.Popen(
        [sys.executable, "-c", MOVED, *words],
        cwd=nodes_world.directory,
        env=nodes_world.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        lines = (json.loads(line) for line in driver.stdout)
        try:
            assert next(line[1] for line in lines if line[0] == "began") == wanted.node_id
            nodes.kill(len(nodes.alive) - 1)
            left = list(lines)
        finally:
            driver.kill()
    ok = {line[2]: line[1] for line in left if line[0] == "ok"}
    assert len(ok) == 4
    assert list(ok.values())[-1] in plain
    assert [line for line in left if line[0] == "said" and "is left: what is missing" in line[1]]


def placed(world: World, nodes: Nodes, wanted: list[Any]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", PLACED, nodes.address, json.dumps(wanted)],
        cwd=world.directory,
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_versions_are_compared_by_name() -> None:
    here = versions_here()
    assert {"python", "orchestrator", "ray", "torch", "transformers"} <= set(here)
    assert not any("+" in version for version in here.values())
    refuse_differences(here, [("host-1", dict(here))])
    other = {**here, "torch": "2.0.0", "python": "3.9.1"}
    with pytest.raises(ClusterError) as refused:
        refuse_differences(here, [("host-1", dict(here)), ("host-2", other)])
    assert f"host-2 has torch 2.0.0, this driver {here['torch']}" in str(refused.value)
    assert "host-2 has python 3.9.1" in str(refused.value)
    assert "host-1" not in str(refused.value)
    assert "constraints.txt" in str(refused.value)


def test_homes_prefer_where_the_model_is_and_take_turns() -> None:
    homes = ModelAffinity()
    model = {"model": {"source": "packaged", "id": "a"}}
    other = {"model": {"source": "packaged", "id": "b"}}
    assert homes.best(model) is None
    homes.began(model, "n1")
    homes.began(model, "n2")
    homes.began({"model": {"source": "random"}}, "n3")
    assert homes.best(model) == "n1"
    assert homes.best(other) is None
    assert homes.best({"model": {"source": "random"}}) is None
    homes.began(model, "n1")
    assert homes.best(model) == "n2"
    homes.lost("n2")
    assert homes.best(model) == "n1"


def test_a_kind_of_gpu_is_the_nodes_label() -> None:
    from orchestrator.schedule.cluster.ray.cluster import _node

    entry = {
        "NodeID": "a", "NodeManagerHostname": "h", "NodeManagerAddress": "1.2.3.4",
        "Resources": {"CPU": 8.0, "GPU": 2.0, "memory": 5.0, "accelerator_type:A10G": 1.0},
        "Labels": {"ray.io/accelerator-type": "A10G"},
    }  # fmt: skip
    assert _node(entry) == Node("a", "h", 8, 2, 5, frozenset({"A10G"}))
    assert _node({**entry, "Labels": {}}).accelerators == frozenset()
