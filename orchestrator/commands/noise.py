"""How much measurements of one thing differ on this hardware, as ``+sweep=aa`` recorded it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.attempt import AttemptReport
    from orchestrator.record import AttemptSummary, Store


def noise_of(store: Store, fingerprints: set[str]) -> float | None:
    """A/A noise recorded for this hardware: the largest of the trials of ``+sweep=aa``.

    Returns
    -------
    float or None
        Relative standard deviation between attempts of ``tpot_s`` (or ``ttft_s``); None where no
        A/A sweep with three attempts of a trial was recorded on exactly this hardware.
    """
    from orchestrator.report.analyse.measured import samples_of
    from orchestrator.statistics.summary import noise_between

    found: list[float] = []
    by_trial: Mapping[str, list[AttemptSummary]] = _grouped(
        s
        for s in store.sweep_attempts("aa")
        if s.outcome == "ok" and s.hardware_fingerprint in fingerprints
    )
    for summaries in by_trial.values():
        if len(summaries) < 3:
            continue
        loaded = store.load_all([summary.run_id for summary in summaries])
        reports = list(loaded.values())
        for metric in ("tpot_s", "ttft_s"):
            series = samples_of(reports, metric)
            noise = noise_between(series) if len(series) >= 3 else None
            if noise is not None:
                found.append(noise)
    return max(found, default=None)


def noise_of_attempts(
    store: Store, attempts: Mapping[str, Sequence[AttemptReport]]
) -> float | None:
    """:func:`noise_of` the hardware that attempts ran on."""
    from orchestrator.record.selection import fingerprints_of

    return noise_of(store, fingerprints_of(attempts))


def _grouped(summaries: Iterable[AttemptSummary]) -> dict[str, list[AttemptSummary]]:
    grouped: dict[str, list[AttemptSummary]] = {}
    for summary in summaries:
        grouped.setdefault(summary.config_hash, []).append(summary)
    return grouped
