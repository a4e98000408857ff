"""What a server exports of itself, in Prometheus's text format, as series over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from orchestrator.measure.series import SeriesSet

SOURCE = "server"
# A histogram has dozens of buckets; its sum and count stay.
_LEFT_OUT = ("_bucket", "_created")


def series_of(texts: Iterable[tuple[int, bytes]], origin_ns: int) -> SeriesSet:
    """Each exported number over time, as it is exported: counters count.

    What cannot be read as that format is left out.

    Parameters
    ----------
    texts : iterable of (int, bytes)
        What came, each with its time on CLOCK_MONOTONIC.
    origin_ns : int
        When time begins.
    """
    # A dependency of Ray's. Here, not above: the load does not wait for it.
    from prometheus_client.parser import text_string_to_metric_families

    found = SeriesSet(origin_ns)
    for at_ns, text in texts:
        try:
            families = list(text_string_to_metric_families(text.decode()))
        except (ValueError, IndexError, KeyError):
            continue
        samples = [sample for family in families for sample in family.samples]
        samples = [sample for sample in samples if not sample.name.endswith(_LEFT_OUT)]
        for name, group in groupby(sorted(samples, key=_name), key=_name):
            alike = list(group)
            for sample, said in zip(alike, _labels(alike), strict=True):
                if math.isfinite(sample.value):
                    found.add(SOURCE, f"{name}{said}", at_ns, sample.value)
    return found


def _name(sample: Any) -> str:
    name: str = sample.name
    return name


def _labels(samples: Sequence[Any]) -> list[str]:
    """What tells samples of one name apart: of each its labels that are not those of all."""
    values: dict[str, set[str | None]] = {}
    for label in {label for sample in samples for label in sample.labels}:
        values[label] = {sample.labels.get(label) for sample in samples}
    differ = sorted(label for label, seen in values.items() if len(seen) > 1)
    said = [
        ",".join(f'{label}="{sample.labels[label]}"' for label in differ if label in sample.labels)
        for sample in samples
    ]
    return [f"{{{each}}}" if each else "" for each in said]
