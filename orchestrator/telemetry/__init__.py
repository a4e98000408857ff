"""Watches an attempt from the supervisor through NVML and the host, and judges what it saw."""

from orchestrator.telemetry.derived import derived
from orchestrator.telemetry.device import (
    Device,
    Inventory,
    device_kind_here,
    devices,
    inventory,
    resolve_visible,
)
from orchestrator.telemetry.fingerprint import hardware_fingerprint, hardware_of
from orchestrator.telemetry.series import PARQUET_ARTIFACT, Series, SeriesSet
from orchestrator.telemetry.vacancy import Held, Vacancy
from orchestrator.telemetry.verdict import judge, limit_of
from orchestrator.telemetry.watch import Telemetry, Watched

__all__ = [
    "PARQUET_ARTIFACT",
    "Device",
    "Held",
    "Inventory",
    "Series",
    "SeriesSet",
    "Telemetry",
    "Vacancy",
    "Watched",
    "derived",
    "device_kind_here",
    "devices",
    "hardware_fingerprint",
    "hardware_of",
    "inventory",
    "judge",
    "limit_of",
    "resolve_visible",
]
