"""The unit that each run recorded a metric in: a task may change one from a day to the next."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.attempt import AttemptReport
from orchestrator.record import Store
from orchestrator.record.params import legal_key
from orchestrator.record.points import PHASES_PREFIX


class Units:
    """Names and units of what a store holds as numbers, read from as few reports as tell them.

    Parameters
    ----------
    store : Store
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, dict[str, tuple[str, str]]] = {}

    def of(self, key: str, run_ids: Sequence[str]) -> list[tuple[str, str | None]]:
        """Name and unit in each of these runs, oldest first, which all have the metric.

        A task that changes a unit is taken to do so for good: where the first and the last run
        agree, so do all between them.

        Parameters
        ----------
        key : str
            Of the metric in :meth:`Store.numbers`, or its name.
        """
        first, last = (self._told(key, run_ids[at]) for at in (0, -1))
        if first == last:
            return [last] * len(run_ids)
        return [self._told(key, run_id) for run_id in run_ids]

    def _told(self, key: str, run_id: str) -> tuple[str, str | None]:
        if run_id not in self._known:
            self._known[run_id] = _told_by(self._store.load(run_id))
        # What no report tells of is its attempt's own: how long it took.
        return self._known[run_id].get(key, (key, None))


def _told_by(report: AttemptReport) -> dict[str, tuple[str, str]]:
    """Name and unit, by key and by the name itself."""
    return {
        key: (name, metric.unit)
        for prefix, metrics in ((PHASES_PREFIX, report.telemetry), ("", report.metrics))
        for name, metric in metrics.items()
        for key in (legal_key(f"{prefix}{name}").removeprefix(prefix), name)
    }
