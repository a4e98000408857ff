"""Names and contents of the files an attempt's run holds.

=====================  ===============================================================
``config.yaml``        the resolved configuration (the identity that is hashed)
``report.json``        the attempt's report, whole: what ``load`` reads back
``samples.parquet``    every raw sample: metric, unit, role, index, value
``provenance.json``    what it ran on and with
``environment.json``   Python and package versions
``log.txt`` ...        whatever the attempt left behind
=====================  ===============================================================
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from unicodedata import category

from orchestrator.attempt import AttemptReport
from orchestrator.errors import StoreError
from orchestrator.measure.metric import Samples

CONFIG = "config.yaml"
REPORT = "report.json"
SAMPLES = "samples.parquet"
PROVENANCE = "provenance.json"
ENVIRONMENT = "environment.json"
PLAN = "plan.json"
MAX_NAME_CHARS = 200


def safe_name(name: str) -> str:
    """``name`` normalised, if it stays inside its directory; raises ``StoreError`` else.

    Artifact names come from tasks and from spool files: neither may write elsewhere.
    """
    path = PurePosixPath(name)
    parts = path.parts
    bad = (
        not parts
        or path.is_absolute()
        or ".." in parts
        or "\\" in name
        or any(ord(character) < 32 or category(character) == "Cs" for character in name)
        or any(len(part.encode()) > MAX_NAME_CHARS for part in parts)
    )
    if bad:
        what = "leaves its directory, or is none that every file system takes"
        raise StoreError(f"artifact name {name[:MAX_NAME_CHARS]!r} {what}")
    return str(path)


def to_json_bytes(data: Mapping[str, Any]) -> bytes:
    """JSON, a line for each top-level key.

    A value that JSON does not know becomes its text, a non-finite number null. Indenting all of it
    would go through Python's slow encoder: milliseconds an attempt, for files few people open.
    """
    lines = []
    for key, value in data.items():
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
        except ValueError:
            text = json.dumps(_finite(value), ensure_ascii=False, default=str)
        lines.append(f"{json.dumps(str(key), ensure_ascii=False)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8", "replace")


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if data == data and abs(data) != float("inf") else None
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return data


def config_yaml(identity: Mapping[str, Any]) -> bytes:
    """The identity as YAML; ``yaml.safe_load`` gives it back value for value."""
    import yaml

    # libyaml's dumper is ten times as fast; it is missing from some builds of PyYAML.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(dict(identity), Dumper=dumper, sort_keys=True, allow_unicode=True)
    return text.encode()


def samples_parquet(report: AttemptReport) -> bytes | None:
    """Every raw sample as one row; None where the attempt has none.

    Columns: ``metric`` and ``unit`` (dictionary-encoded), ``role`` (``measured`` or ``warmup``),
    ``index`` within its series and role, ``value`` in ``unit``.
    """
    series = [
        (metric.name, metric.unit, role, values)
        for metric in report.metrics.values()
        if isinstance(metric, Samples)
        for role, values in (("warmup", metric.warmup), ("measured", metric.values))
        if values
    ]
    if not series:
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(which: int) -> Any:
        words = [row[which] for row in series for _ in row[3]]
        return pa.array(words, pa.string()).dictionary_encode()

    table = pa.table(
        {
            "metric": column(0),
            "unit": column(1),
            "role": column(2),
            "index": pa.array([i for *_, values in series for i in range(len(values))], pa.int32()),
            "value": pa.array([v for *_, values in series for v in values], pa.float64()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
