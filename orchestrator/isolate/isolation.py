"""Runs each attempt in a process of its own, forked from a server that has already imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.attempt import AttemptReport, PlannedAttempt, Slot
from orchestrator.environments.build import code_directory
from orchestrator.errors import OrchestratorError
from orchestrator.host.secrets import secret_values
from orchestrator.isolate.cancel import Cancel
from orchestrator.isolate.directory import sweep
from orchestrator.isolate.forkserver import ForkServer
from orchestrator.isolate.ledger import Progress
from orchestrator.isolate.observer import AttemptObserver
from orchestrator.isolate.supervise import Supervision
from orchestrator.isolate.variables import server_environment
from orchestrator.measure.registry import find_task

# Each holds what it imported: with torch some 400 MB.
_MOST_SERVERS = 3


@dataclass(frozen=True)
class _Kind:
    """What a fork server is started for: modules, the secrets it may know, and its Python."""

    preload: tuple[str, ...]
    hub: bool
    keep: tuple[str, ...]
    python: Path | None

    def start(self, extra: Mapping[str, str]) -> ForkServer:
        environment = partial(server_environment, os.environ, extra, hub=self.hub, keep=self.keep)
        if self.python is None:
            return ForkServer(self.preload, environment())
        # Nothing of the supervisor's own packages: they would hide the environment's.
        only_code = environment(import_path=str(code_directory()))
        return ForkServer(self.preload, only_code, str(self.python))


class Isolation:
    """Keeps a few warm fork servers and runs attempts one after another. Linux only.

    Parameters
    ----------
    preload : sequence of str, optional
        Modules the server imports; by default what each attempt's task names. Another set, or
        another environment, means another server; the one that waited longest ends.
    env : mapping, optional
        Variables to set in every measured process.

    Examples
    --------
    ::

        with Isolation() as isolation:
            for item in isolation.run(attempt, slot):
                ...  # Progress, Progress, ..., AttemptReport
    """

    def __init__(
        self,
        preload: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._preload = None if preload is None else tuple(preload)
        self._env = dict(env or {})
        self._servers: dict[_Kind, ForkServer] = {}
        self._cancel = Cancel()
        self._running = False
        sweep()

    def run(
        self, attempt: PlannedAttempt, slot: Slot, watch: AttemptObserver | None = None
    ) -> Iterator[Progress | AttemptReport]:
        """Run one attempt in a new process.

        Parameters
        ----------
        attempt : PlannedAttempt
            What to run, with its limits.
        slot : Slot
            The cores and GPUs it is bound to.
        watch : AttemptObserver, optional
            Telemetry, told when to start, whom to watch and when to end.

        Yields
        ------
        Progress or AttemptReport
            Progress as it happens, at last exactly one report, whatever the process does. When that
            has come, or the iterator is closed, or an interrupt passes through it, no process
            and no file of the attempt is left.
        """
        if self._running:
            raise RuntimeError("an Isolation runs one attempt at a time")
        # Here and not in the generator: a cancel that comes before its first step must count.
        self._cancel.clear()
        return self._follow(attempt, slot, watch)

    def _follow(
        self, attempt: PlannedAttempt, slot: Slot, watch: AttemptObserver | None
    ) -> Iterator[Progress | AttemptReport]:
        self._running = True
        try:
            preload = self._preload_of(attempt)
            # A model that brings its own code must not read the token with which it was fetched.
            hub = not (attempt.trial.identity.get("model") or {}).get("trust_remote_code")
            keep = _secrets_of(attempt)
            yield from Supervision(
                attempt,
                slot,
                preload=preload,
                # A spawned interpreter does its own importing; its server stays bare.
                server=lambda python: self._warm_server(
                    _Kind(preload if attempt.start == "fork" else (), hub, keep, python)
                ),
                cancel=self._cancel,
                watch=watch,
                secrets=secret_values({**os.environ, **self._env}),
            ).follow()
        finally:
            self._running = False

    def cancel(self) -> None:
        """End the attempt under way, from any thread; its outcome is ``cancelled``."""
        self._cancel.set()

    def close(self) -> None:
        """End the fork servers."""
        while self._servers:
            self._servers.popitem()[1].close()

    def __enter__(self) -> Isolation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _preload_of(self, attempt: PlannedAttempt) -> tuple[str, ...]:
        if self._preload is not None:
            return self._preload
        try:
            identity = attempt.trial.identity
            return find_task(identity["task"]["name"]).preload_for(identity)
        except (OrchestratorError, ImportError, KeyError, TypeError):
            return ()  # the child will say what is wrong with it

    def _warm_server(self, kind: _Kind) -> ForkServer:
        """The server of this kind; the last one used stands last."""
        server = self._servers.pop(kind, None)
        if server is not None and not server.alive():
            server.close()
            server = None
        if server is None:
            while len(self._servers) >= _MOST_SERVERS:
                self._servers.pop(next(iter(self._servers))).close()
            server = kind.start(self._env)
        self._servers[kind] = server
        return server


def _secrets_of(attempt: PlannedAttempt) -> tuple[str, ...]:
    try:
        identity = attempt.trial.identity
        return find_task(identity["task"]["name"]).secrets(identity)
    except (OrchestratorError, ImportError, KeyError, TypeError):
        return ()  # as of what is to be imported
