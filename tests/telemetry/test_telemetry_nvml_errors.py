"""The boundary to NVML: every error translated, field ids by driver version, one importer."""

from __future__ import annotations

import ast
import struct
from pathlib import Path

import pynvml
import pytest

import orchestrator
from orchestrator.telemetry.nvml import (
    _FIELD_VALUE,
    TRANSLATION,
    Kind,
    throttle_field_ids,
    translate,
)

NAMES = {
    getattr(pynvml, name): name.removeprefix("NVML_ERROR_")
    for name in dir(pynvml)
    if name.startswith("NVML_ERROR_")
}


def test_every_nvml_error_has_a_kind_and_a_reason() -> None:
    assert set(TRANSLATION) >= set(NAMES.values())
    for kind, reason in TRANSLATION.values():
        assert isinstance(kind, Kind)
        assert reason
        assert not reason.endswith(".")


@pytest.mark.parametrize("code", sorted(NAMES))
def test_every_code_is_translated(code: int) -> None:
    assert translate(code, NAMES) == TRANSLATION[NAMES[code]]


def test_code_of_a_newer_driver_is_asked_again() -> None:
    assert translate(4711, NAMES) == (Kind.TRANSIENT, "NVML error 4711")


@pytest.mark.parametrize(
    ("driver", "thermal"),
    [
        ("535.183.01", None),
        ("565.57.01", None),
        ("570.133.20", 251),
        ("580.65.06", 251),
        ("580.82.07", 269),
        ("580.95.05", 269),
        ("simulated-590.10", 269),
        ("", None),
    ],
)
def test_throttle_counters_have_the_id_that_the_driver_gives_them(
    driver: str, thermal: int | None
) -> None:
    ids = throttle_field_ids(driver, pynvml)
    assert ids.get("throttle_sw_thermal_s") == thermal
    assert ids["throttle_power_cap_s"] == 74
    if thermal is not None:
        assert ids["throttle_hw_thermal_s"] == thermal + 1
        assert ids["throttle_power_brake_s"] == thermal + 2


def test_field_values_are_unpacked_as_pynvml_lays_them_out() -> None:
    answers = (pynvml.c_nvmlFieldValue_t * 2)()
    answers[0].valueType, answers[0].nvmlReturn = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, 0
    answers[0].value.uiVal = 4_000_000_000
    answers[1].valueType, answers[1].nvmlReturn = pynvml.NVML_VALUE_TYPE_DOUBLE, 3
    answers[1].value.dVal = 1.5
    first, second = _FIELD_VALUE.iter_unpack(answers)
    assert first[:2] == (pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, 0)
    assert struct.unpack("@I4x", first[2])[0] == 4_000_000_000
    assert second[:2] == (pynvml.NVML_VALUE_TYPE_DOUBLE, 3)
    assert struct.unpack("@d", second[2])[0] == 1.5


def test_only_the_boundary_imports_pynvml() -> None:
    root = Path(orchestrator.__file__).parent
    importers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "pynvml" for name in names):
                importers.add(path.relative_to(root).as_posix())
    assert importers == {"telemetry/nvml.py"}
