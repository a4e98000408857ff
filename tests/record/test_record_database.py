"""The embedded store's database: made once, waited for, refused in one line where unfit."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.attempt import Outcome
from orchestrator.errors import ConfigError, StoreError
from orchestrator.record import Recording, open_store, ui_arguments
from orchestrator.record.backend import local_directory
from orchestrator.record.database import sqlite_backend
from orchestrator.record.embedded import EmbeddedStore


def test_a_first_sweep_makes_its_database(fresh_store: EmbeddedStore, kit: SimpleNamespace) -> None:
    kit.record_one(fresh_store, kit.trial_of(1))
    assert len(fresh_store.attempts()) == 1
    from mlflow import MlflowClient

    experiments = MlflowClient(tracking_uri=fresh_store.uri).search_experiments()
    # The default experiment too: else MLflow writes to whatever directory it was started in.
    assert all(str(fresh_store.artifact_root) in e.artifact_location for e in experiments)


def test_a_moved_root_still_reads(
    store: EmbeddedStore, kit: SimpleNamespace, tmp_path: Path
) -> None:
    run_id = kit.record_one(store, kit.trial_of(1))
    store.root.rename(tmp_path / "elsewhere")
    moved = open_store({"root": tmp_path / "elsewhere"})
    assert moved.load(run_id).outcome is Outcome.OK


def test_a_copy_is_a_store_of_its_own(
    store: EmbeddedStore, kit: SimpleNamespace, tmp_path: Path
) -> None:
    first = kit.record_one(store, kit.trial_of(1))
    alien = store.backend()._store.create_experiment("of somebody", "s3://bucket/artifacts")
    shutil.copytree(store.root, tmp_path / "copy")
    copy = open_store({"root": tmp_path / "copy"})
    assert isinstance(copy, EmbeddedStore)
    second = kit.record_one(copy, kit.trial_of(2))

    # The original has not changed, and is not needed any more.
    files = {path.name for path in store.artifact_root.iterdir()}
    assert first in files
    assert second not in files
    shutil.rmtree(store.root)
    assert {len(found) for found in copy.attempts().values()} == {1}
    for run_id in (first, second):
        assert copy.load(run_id).outcome is Outcome.OK
        assert local_directory(copy.backend().get_run(run_id).artifact_uri) == (
            copy.artifact_root / run_id / "artifacts"
        )
    experiments = copy.backend()._store.search_experiments()
    locations = {e.experiment_id: e.artifact_location for e in experiments}
    assert locations.pop(alien) == "s3://bucket/artifacts"
    root = copy.artifact_root.as_uri()
    assert set(locations.values()) == {root, f"{root}/0"}


def test_the_ui_of_a_moved_root_finds_its_files(
    store: EmbeddedStore, kit: SimpleNamespace, tmp_path: Path
) -> None:
    run_id = kit.record_one(store, kit.trial_of(1))
    store.root.rename(moved := tmp_path / "elsewhere")
    ui_arguments({"root": moved}, "127.0.0.1", 5000)
    with closing(sqlite3.connect(moved / "mlflow.db")) as connection:
        uris = connection.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", (run_id,))
        assert uris.fetchone() == ((moved / "artifacts" / run_id / "artifacts").as_uri(),)


def test_threads_that_ask_at_once_share_one_backend(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "mlruns")
    with ThreadPoolExecutor(4) as pool:
        backends = set(pool.map(lambda _: store.backend(), range(4)))
    assert len(backends) == 1


def test_a_second_store_of_a_root_leaves_the_engine_in_use_alone(tmp_path: Path) -> None:
    # MLflow shares one engine in a process; SQLAlchemy fails where a listener is added while
    # another thread connects.
    def listeners(store: EmbeddedStore) -> int:
        return len(store.backend()._store.engine.pool.dispatch.connect)

    first, second = EmbeddedStore(tmp_path / "mlruns"), EmbeddedStore(tmp_path / "mlruns")
    before = listeners(first)
    assert listeners(second) == before
    with sqlite3.connect(first.database) as plain:
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection = first.backend()._store.engine.raw_connection()
    try:
        assert connection.cursor().execute("PRAGMA synchronous").fetchone() == (1,)
    finally:
        connection.close()


def test_a_database_whose_making_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    database, artifacts = tmp_path / "mlflow.db", tmp_path / "artifacts"
    code = (
        "import sys; from pathlib import Path; from orchestrator.record.database import "
        "sqlite_backend; sqlite_backend(*map(Path, sys.argv[1:]))"
    )
    maker = subprocess.Popen([sys.executable, "-c", code, str(database), str(artifacts)])
    while not any(path.stat().st_size for path in tmp_path.glob("mlflow.db.making-*")):
        assert maker.poll() is None, "it made a store, and this test did not see how"
        time.sleep(0.001)
    maker.kill()
    maker.wait()
    assert not database.exists()
    backend = sqlite_backend(database, artifacts)
    assert backend.experiment("quant") in backend.experiment_ids()
    assert not list(tmp_path.glob("mlflow.db.making*"))


def test_a_database_that_did_not_fit_is_made_anew_by_the_same_process(tmp_path: Path) -> None:
    # MLflow keeps its engine for an address: one that held the half-made file called it damaged.
    code = """if True:
        import resource, sys
        from pathlib import Path
        from orchestrator.errors import StoreError
        from orchestrator.record.database import sqlite_backend
        import mlflow.store.tracking.sqlalchemy_store  # whose caches on disk may be larger
        database, artifacts = map(Path, sys.argv[1:])
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
        try:
            sqlite_backend(database, artifacts)
        except StoreError as error:
            print(error)
        assert not database.exists()
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        print(sqlite_backend(database, artifacts).experiment("quant"))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mlflow.db"), str(tmp_path / "artifacts")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    refused, experiment = done.stdout.splitlines()
    assert "mlflow.db: " in refused
    assert experiment.isdigit()


@pytest.mark.long
def test_two_drivers_create_the_database_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from orchestrator.record import open_store\n"
        "s = open_store({'root': sys.argv[1]})\n"
        "while time.time() < float(sys.argv[2]): pass\n"
        "b = s.backend()\n"
        "e = b.experiment('same')\n"
        "b.create_run(e, 'n', 1, {})\n"
        "print(e)\n"
    )
    begin = str(time.time() + 3)
    arguments = [sys.executable, "-c", code, str(tmp_path / "mlruns"), begin]
    processes = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({output[0] for output in outputs}) == 1
    # MLflow's migrations are not for the terminal.
    assert [output[1] for output in outputs] == ["", ""]
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        locations = connection.execute("SELECT artifact_location FROM experiments").fetchall()
    assert all(str(tmp_path) in location for (location,) in locations)


def test_a_locked_database_is_waited_for(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    trials = [kit.trial_of(value) for value in range(3)]
    kit.record_one(store, trials[0])
    messages: list[str] = []
    with Recording(store, kit.plan_of(trials), message=messages.append) as recording:
        assert recording.flush(60)
        locker = sqlite3.connect(store.database, isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        for trial in trials[1:]:
            recording.finish(kit.report_of(kit.spec_of(trial)), trial)
        assert not recording.flush(2.0)
        # What is finished is known at once, from the spool.
        assert len(store.attempts()) == 3
        waiting = store.attempts()[trials[1].hash][0]
        assert waiting.run_id.startswith("spool:")
        assert store.load(waiting.run_id).config_hash == trials[1].hash
        assert store.identity(waiting.run_id) == trials[1].identity
        assert "report.json" in store.artifact_names(waiting.run_id)
        assert store.numbers([waiting.run_id])["tpot_s"] == [0.12]
        locker.execute("ROLLBACK")
        locker.close()
        assert recording.flush(90)
    # Who listed it before is answered by what it has become.
    assert not list(store.spool_root.rglob("*.finish"))
    assert store.load(waiting.run_id).config_hash == trials[1].hash
    assert "report.json" in store.artifact_names(waiting.run_id)
    assert store.numbers([waiting.run_id])["tpot_s"] == [0.12]
    with pytest.raises(StoreError, match="not in the spool any more"):
        EmbeddedStore(store.root).load(waiting.run_id)
    assert all(len(group) == 1 for group in store.attempts().values())
    assert all(
        s.run_id and not s.run_id.startswith("spool:")
        for group in store.attempts().values()
        for s in group
    )


def test_an_error_while_locked_is_one_line(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    from orchestrator.errors import StoreUnavailable
    from orchestrator.record.boundary import translated

    with (
        pytest.raises(StoreUnavailable, match="locked by another process") as caught,
        translated(store.where),
    ):
        raise sqlite3.OperationalError("database is locked")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["newer", "older", "garbage"])
def test_databases_of_another_kind(store: EmbeddedStore, kit: SimpleNamespace, how: str) -> None:
    if how == "garbage":
        store.database.write_bytes(b"this is not a database, it is a text file" * 100)
    else:
        kit.record_one(store, kit.trial_of(1))
        version = "ffffffffffff" if how == "newer" else "451aebb31d03"
        with sqlite3.connect(store.database) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    fresh = open_store({"root": store.root})
    with pytest.raises(StoreError) as caught:
        fresh.backend()
    assert "\n" not in str(caught.value)
    assert str(store.root) in str(caught.value)
    assert caught.value.fix
    if how == "garbage":
        with pytest.raises(StoreError, match="is not a SQLite database"):
            fresh.attempts()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_root_is_refused_before_anything_runs(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    store.root.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        Recording(store, kit.plan_of([kit.trial_of(1)]))


def test_a_root_that_is_a_file_is_refused_before_anything_runs(
    tmp_path: Path, kit: SimpleNamespace
) -> None:
    (tmp_path / "mlruns").write_text("")
    with pytest.raises(StoreError) as caught:
        Recording(open_store({"root": tmp_path / "mlruns"}), kit.plan_of([kit.trial_of(1)]))
    assert "\n" not in str(caught.value)


def test_settings_that_name_no_store() -> None:
    with pytest.raises(ConfigError, match="unknown tracking"):
        open_store({"kind": "cloud"})
    for uri in ("", "file:///x", "localhost:5000", "http://"):
        with pytest.raises(ConfigError):
            open_store({"kind": "server", "uri": uri})


def test_the_ui_is_pointed_at_the_store(store: EmbeddedStore, tmp_path: Path) -> None:
    arguments, environment = ui_arguments({"root": store.root}, "127.0.0.1", 5001)
    assert arguments[0] == "server"
    assert arguments[arguments.index("--backend-store-uri") + 1] == store.uri
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    with pytest.raises(StoreError, match="nothing is recorded here yet"):
        ui_arguments({"root": tmp_path / "empty"}, "127.0.0.1", 5001)
