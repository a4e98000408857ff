"""What SECURITY.md promises, looked at from outside: ports, pickles, secrets, tampering."""

from __future__ import annotations

import ast
import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from orchestrator.plan.expand import build
from orchestrator.plan.identity import config_hash
from testing.commands import orchestrator
from testing.near import near
from testing.person import PLANTED, Swept

pytestmark = pytest.mark.xdist_group("swept")

ROOT = Path(__file__).resolve().parents[1]


def is_loopback(host: str) -> bool:
    address = ip_address(host)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_nothing_listens_beyond_loopback(swept: Swept) -> None:
    assert swept.listening, "Ray listens, on loopback"
    assert {host for host in swept.listening if not is_loopback(host)} == set()


def test_the_spool_is_the_users_alone_whatever_the_umask(swept: Swept) -> None:
    records = {name: mode for name, mode in swept.modes.items() if "/spool/" in name}
    assert any(name.endswith((".begin", ".finish", ".sweep")) for name in records)
    shared = {name: oct(mode) for name, mode in swept.modes.items() if mode & 0o077}
    assert shared == {}


def test_a_planted_secret_is_nowhere(swept: Swept) -> None:
    """In the environment, the command line and the configuration; neither kept nor printed."""
    assert swept.files
    kept = [path for path in swept.files if PLANTED.encode() in path.read_bytes()]
    assert kept == []
    assert PLANTED not in swept.err
    assert PLANTED not in json.dumps(swept.json)
    description = any(b"uses [redacted]" in path.read_bytes() for path in swept.files)
    assert description, "the place where it was is there"


def test_a_tampered_configuration_is_not_reproduced(tmp_path: Path) -> None:
    with near():
        words = ("task=noop", "task.value=7", "device=cpu", "verdict=off", "--json")
        trial = json.loads(orchestrator(tmp_path, *words).out)["trials"][0]
    runs = tmp_path / "mlruns"
    (config,) = runs.rglob(f"{trial['run_id']}/artifacts/config.yaml")
    whole = config.read_text()
    assert "value: 7" in whole
    config.write_text(whole.replace("value: 7", "value: 8"))
    before = sorted((runs / "artifacts").iterdir())
    done = orchestrator(tmp_path, "reproduce", trial["hash"])
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert "it was changed after it was recorded" in line
    assert line.endswith("Nothing was run")
    assert sorted((runs / "artifacts").iterdir()) == before


def test_code_of_a_models_repository_is_off_and_part_of_the_identity() -> None:
    def identity(*words: str) -> dict:
        words = ("model=hub", "model.id=a/b", "model.revision=main", "device=cpu", *words)
        return build(words, device_kind=lambda cluster: "cpu").trials[0].identity

    plain, trusting = identity(), identity("model.trust_remote_code=true")
    assert plain["model"]["trust_remote_code"] is False
    assert trusting["model"]["trust_remote_code"] is True
    assert config_hash(plain) != config_hash(trusting)


SAFE = {
    ("weights_only", "True"),
    ("Loader", "yaml.BaseLoader"),
    ("Loader", "yaml.SafeLoader"),
    ("Loader", "yaml.CSafeLoader"),
}
# Ray's authenticated channel: a cancelled attempt's report, left in the cluster's own store.
ALLOWED = {("orchestrator/schedule/cluster/ray/worker.py", "pickle.loads")}
UNPICKLING = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads",
    "torch.load", "joblib.load", "dill.load", "dill.loads", "marshal.load", "marshal.loads",
    "shelve.open", "pandas.read_pickle", "pd.read_pickle", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load",
}  # fmt: skip


def test_nothing_is_unpickled_from_disk_or_network() -> None:
    found = set()
    for path in [*(ROOT / "orchestrator").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            # BaseLoader makes texts, SafeLoader plain values; neither makes an object.
            safe = any(
                (k.arg, ast.unparse(k.value)) in SAFE for k in node.keywords if k.arg is not None
            )
            if called in UNPICKLING and not safe:
                found.add((name, called))
            if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False"
                   for k in node.keywords):  # fmt: skip
                found.add((name, f"{called}(allow_pickle)"))
            if called.endswith("from_pretrained"):
                assert not any(
                    k.arg == "use_safetensors" and ast.unparse(k.value) == "False"
                    for k in node.keywords
                ), name
    assert found == ALLOWED


def test_the_ui_is_on_loopback_unless_asked_otherwise() -> None:
    from orchestrator.commands.parser import commands

    (host,) = (p for p in commands.commands["ui"].params if p.name == "host")
    assert is_loopback(str(host.default))
