"""The tracking server as deploy/ starts it: real PostgreSQL, logins, artifacts through it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from testing.commands import Answer, orchestrator

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 8
USER = "measurer"


def _program(name: str) -> str | None:
    """A server program of PostgreSQL; Debian keeps them off the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, places)]))


def _whoever_may_run_it() -> dict[str, Any]:
    """What :class:`subprocess.Popen` needs so that PostgreSQL starts: it refuses root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


@dataclass
class Tracking:
    """The server's address, and every password there is."""

    uri: str
    directory: Path
    server: psutil.Process
    passwords: dict[str, str]
    said: list[str] = field(default_factory=list)

    def request(self, path: str, body: Mapping[str, Any], user: str, password: str) -> int:
        request = urllib.request.Request(
            f"{self.uri}/{path}",
            json.dumps(body).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": "Basic "
                + base64.b64encode(f"{user}:{password}".encode()).decode(),
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def words(self, *words: str) -> list[str]:
        """The sweep's words, and ``words``."""
        return ["task=noop", f"task.value=range({TRIALS})", "task.sleep_s=0.1",
                "model=random_tiny", "device=cpu", "telemetry.enabled=false",
                "tracking=server", f"tracking.uri={self.uri}", *words]  # fmt: skip

    def host(self, name: str, password: str | None = None) -> tuple[Path, dict[str, str]]:
        """Directory and variables of a "host" of its own: another spool, another state."""
        place = self.directory / name
        place.mkdir(exist_ok=True)
        return place, {
            "XDG_STATE_HOME": str(place / "state"),
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": password or self.passwords["user"],
        }

    def driver(self, name: str, *words: str) -> subprocess.Popen[str]:
        """``python -m orchestrator`` on a host."""
        place, variables = self.host(name)
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *self.words(*words)],
            cwd=place,
            env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self, driver: subprocess.Popen[str]) -> Answer:
        try:
            out, err = driver.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            driver.kill()
            raise AssertionError(f"it does not end: {driver.communicate()[1][-3000:]}") from None
        return self.heard(Answer(driver.returncode, out, err))

    def heard(self, answer: Answer) -> Answer:
        """``answer``, remembered."""
        self.said += [answer.out, answer.err]
        return answer


@pytest.fixture(scope="module")
def postgres() -> Iterator[SimpleNamespace]:
    """A PostgreSQL that listens on a socket in a directory and nowhere else."""
    psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2-binary is not installed")
    initdb, postgres = _program("initdb"), _program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    who = _whoever_may_run_it()
    # Not under pytest's own directory: another user cannot reach it. Short, for the socket's path.
    directory = Path(tempfile.mkdtemp(prefix="orchestrator-pg-", dir="/tmp"))
    password = secrets.token_hex(12)
    process: subprocess.Popen[bytes] | None = None
    try:
        (directory / "password").write_text(password)
        if who:
            os.chown(directory, who["user"], who["group"])
            os.chown(directory / "password", who["user"], who["group"])
        made = subprocess.run(
            [initdb, "-D", str(directory / "data"), "-U", "mlflow", "--auth=scram-sha-256",
             f"--pwfile={directory / 'password'}", "--no-sync", "--locale=C", "--encoding=UTF8"],
            capture_output=True,
            text=True,
            cwd=directory,
            **who,
        )  # fmt: skip
        if made.returncode != 0:
            pytest.skip(f"initdb cannot run here: {made.stderr.strip().splitlines()[-1:]}")
        with open(directory / "log", "wb") as log:
            process = subprocess.Popen(
                [postgres, "-D", str(directory / "data"), "-k", str(directory), "-c",
                 "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off"],
                stdout=log,
                stderr=log,
                cwd=directory,
                **who,
            )  # fmt: skip
        connection = _connected(psycopg2, directory, password, process)
        connection.autocommit = True
        for name in ("mlflow", "mlflow_auth"):
            connection.cursor().execute(f"CREATE DATABASE {name}")
        connection.close()
        yield SimpleNamespace(directory=directory, password=password, psycopg2=psycopg2)
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        shutil.rmtree(directory, ignore_errors=True)


def _connected(
    psycopg2: Any, directory: Path, password: str, process: subprocess.Popen[bytes]
) -> Any:
    deadline = time.monotonic() + 60
    while True:
        try:
            return psycopg2.connect(
                host=str(directory), user="mlflow", password=password, dbname="postgres"
            )
        except psycopg2.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (directory / "log").read_text(errors="replace")
                raise AssertionError(f"PostgreSQL does not come up: {log[-800:]}") from error
            time.sleep(0.1)


@pytest.fixture(scope="module")
def tracking(
    postgres: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tracking]:
    """``deploy/mlflow/serve.sh``, with one user who is no administrator."""
    pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")
    directory = tmp_path_factory.mktemp("tracking")
    passwords = {
        "postgres": postgres.password,
        "admin": secrets.token_hex(12),
        "session": secrets.token_hex(12),
        "user": secrets.token_hex(12),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(directory / "server.log", "wb") as log:
        process = subprocess.Popen(
            [ROOT / "deploy/mlflow/serve.sh"],
            env={
                "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                "HOME": str(directory),
                "POSTGRES_HOST": str(postgres.directory),
                "POSTGRES_PASSWORD": passwords["postgres"],
                "MLFLOW_AUTH_ADMIN_PASSWORD": passwords["admin"],
                "MLFLOW_FLASK_SERVER_SECRET_KEY": passwords["session"],
                "PORT": str(port),
                "WORKERS": "1",
                "ARTIFACTS": str(directory / "artifacts"),
            },
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    found = Tracking(f"http://127.0.0.1:{port}", directory, psutil.Process(process.pid), passwords)
    try:
        deadline = time.monotonic() + 120
        while not _is_healthy(found.uri):
            log_text = (directory / "server.log").read_text(errors="replace")
            assert process.poll() is None, log_text[-2000:]
            assert time.monotonic() < deadline, log_text[-2000:]
            time.sleep(0.2)
        body = {"username": USER, "password": passwords["user"]}
        users = "api/2.0/mlflow/users/create"
        assert found.request(users, body, "admin", passwords["admin"]) == 200
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _is_healthy(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_wrong_password_is_one_line(tracking: Tracking) -> None:
    place, variables = tracking.host("nowhere", password="wrong-" + secrets.token_hex(6))
    done = tracking.heard(orchestrator(place, *tracking.words(), **variables))
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: {tracking.uri}: rejects these credentials")
    assert "MLFLOW_TRACKING_PASSWORD" in line


@pytest.fixture(scope="module")
def swept(tracking: Tracking) -> tuple[Answer, Answer]:
    """Two drivers, as on two hosts, started at once on the same sweep."""
    two = [tracking.driver(host, "resources.cpus=1", "--json") for host in ("east", "west")]
    east, west = (tracking.ended(driver) for driver in two)
    return east, west


def test_drivers_on_two_hosts_measure_each_trial_once(
    tracking: Tracking,
    swept: tuple[Answer, Answer],
    postgres: SimpleNamespace,
) -> None:
    answers = []
    for done in swept:
        assert done.code == 0, done.err
        answers.append(done.json)
    own = [answer["outcomes"].get("ok", 0) for answer in answers]
    assert sum(own) == TRIALS
    assert [answer["cached"] for answer in answers] == [TRIALS - count for count in own]
    runs = rows(
        postgres,
        "SELECT r.status, h.value FROM runs r JOIN tags h ON h.run_uuid = r.run_uuid"
        " WHERE h.key = 'config_hash'",
    )
    assert [status for status, _ in runs] == ["FINISHED"] * TRIALS
    assert len({config_hash for _, config_hash in runs}) == TRIALS
    claims = rows(postgres, "SELECT value FROM tags WHERE key LIKE 'claim.%%' AND value <> ''")
    names = {config_hash for _, config_hash in runs}
    claimed = [value.split("/") for (value,) in claims]
    assert {config_hash for config_hash, _ in claimed} <= names
    assert len({conditions for _, conditions in claimed}) <= 1, "the two hosts are alike"


def test_the_same_again_has_nothing_to_do(tracking: Tracking, swept: tuple[Answer, Answer]) -> None:
    place, variables = tracking.host("north")
    again = tracking.heard(orchestrator(place, *tracking.words("--json"), **variables))
    assert again.code == 0, again.err
    assert "nothing left to do" in again.err
    assert again.json["cached"] == TRIALS


def test_no_password_is_anywhere(
    tracking: Tracking,
    swept: tuple[Answer, Answer],
    postgres: SimpleNamespace,
) -> None:
    kept = [path.read_bytes() for path in tracking.directory.rglob("*") if path.is_file()]
    kept += ["".join(tracking.said).encode()]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            kept.append(" ".join(process.cmdline()).encode())
    for table in ("runs", "tags", "params", "experiments"):
        kept.append(str(rows(postgres, f"SELECT * FROM {table}")).encode())
    for name, password in tracking.passwords.items():
        assert not [text[:200] for text in kept if password.encode() in text], name


def test_artifacts_went_through_the_server(
    tracking: Tracking, swept: tuple[Answer, Answer]
) -> None:
    found = list((tracking.directory / "artifacts").rglob("report.json"))
    assert len(found) == TRIALS


def rows(postgres: SimpleNamespace, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(
        postgres.psycopg2.connect(
            host=str(postgres.directory),
            user="mlflow",
            password=postgres.password,
            dbname="mlflow",
        )
    ) as connection:
        cursor = connection.cursor()
        cursor.execute(query.replace("%%", "%"))
        return list(cursor.fetchall())
