"""Opens the store that the configuration names, and MLflow's UI on it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError, StoreError
from orchestrator.record.boundary import SERVER_ENVIRONMENT
from orchestrator.record.embedded import EmbeddedStore
from orchestrator.record.store import Store
from orchestrator.record.tracking_server import ServerStore


def open_store(tracking: Any) -> Store:
    """The store that the configuration group ``tracking`` names. Touches neither disk nor network.

    Parameters
    ----------
    tracking : object or mapping
        ``kind`` (``embedded`` or ``server``), ``root`` (a directory), ``uri`` (http or https).

    Raises
    ------
    ConfigError
        No such kind, or a server without a usable URI.
    """

    def setting(name: str) -> Any:
        if isinstance(tracking, Mapping):
            return tracking.get(name)
        return getattr(tracking, name, None)

    kind = str(setting("kind") or "embedded")
    if kind == "embedded":
        return EmbeddedStore(Path(str(setting("root") or "mlruns")))
    if kind == "server":
        return ServerStore(str(setting("uri") or ""))
    raise ConfigError(
        f"unknown tracking {kind!r}", where="tracking.kind", fix="Known: embedded, server"
    )


def ui_arguments(tracking: Any, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """What to call ``mlflow`` with to see the embedded store: arguments, and variables to add.

    Raises
    ------
    StoreError
        Nothing was recorded there yet: MLflow would make an empty database of its own.
    """
    store = open_store(tracking)
    if not isinstance(store, EmbeddedStore):
        raise ConfigError("a tracking server has a UI of its own", where="tracking.kind")
    if not store.database.exists():
        raise StoreError("nothing is recorded here yet", where=str(store.root), fix="Run a sweep")
    # Opened for writing it names its files where they are now; what can only be read stays.
    with suppress(StoreError):
        store.backend()
    arguments = ["server", "--backend-store-uri", store.uri]
    arguments += ["--default-artifact-root", store.artifact_root.as_uri()]
    arguments += ["--host", host, "--port", str(port), "--workers", "1"]
    return arguments, dict(SERVER_ENVIRONMENT)
