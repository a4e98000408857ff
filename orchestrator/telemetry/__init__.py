"""Watches an attempt from the supervisor through NVML and the host, and judges what it saw."""

from orchestrator.telemetry.derived import derived
from orchestrator.telemetry.device import (
    Device,
    Inventory,
    device_kind_here,
    devices,
    hardware_facts,
    hardware_fingerprint,
    inventory,
    resolve_visible,
)
from orchestrator.telemetry.series import PARQUET_ARTIFACT, Series, SeriesSet
from orchestrator.telemetry.verdict import judge
from orchestrator.telemetry.watch import Telemetry, Watched

__all__ = [
    "PARQUET_ARTIFACT",
    "Device",
    "Inventory",
    "Series",
    "SeriesSet",
    "Telemetry",
    "Watched",
    "derived",
    "device_kind_here",
    "devices",
    "hardware_facts",
    "hardware_fingerprint",
    "inventory",
    "judge",
    "resolve_visible",
]
