"""The A/A noise that was recorded for the hardware of some attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.attempt import AttemptReport
from orchestrator.measure.grouping import grouped

if TYPE_CHECKING:
    from orchestrator.record import Store

_LEAST_ATTEMPTS = 3


def noise_of(store: Store, *sides: Mapping[str, Sequence[AttemptReport]]) -> float | None:
    """The largest noise of the trials of ``+sweep=aa`` on exactly the hardware of ``sides``.

    Returns
    -------
    float or None
        Relative standard deviation between attempts of ``tpot_s`` (or ``ttft_s``); None where no
        trial of an A/A sweep has three attempts on that hardware.
    """
    from orchestrator.report.analyse.measured import samples_of
    from orchestrator.statistics.bootstrap import noise_between

    reports = (report for side in sides for found in side.values() for report in found)
    fingerprints = {report.facts.get("hardware_fingerprint") for report in reports} - {None}
    if not fingerprints:
        return None
    comparable = [
        summary
        for summary in store.sweep_attempts("aa")
        if summary.outcome == "ok" and summary.hardware_fingerprint in fingerprints
    ]
    found = []
    for summaries in grouped(comparable, lambda summary: summary.config_hash).values():
        if len(summaries) < _LEAST_ATTEMPTS:
            continue
        loaded = list(store.load_all(summaries).values())
        series = [samples_of(loaded, metric) for metric in ("tpot_s", "ttft_s")]
        found += [noise_between(each) for each in series if len(each) >= _LEAST_ATTEMPTS]
    return max((noise for noise in found if noise is not None), default=None)
