"""Plays NVIDIA GPUs that are not there, for every kind of device and what can go wrong with it.

A shared library answers in the place of the driver's, loaded by the unmodified ``pynvml``. Attempts
measured under it say so (``simulated``) and compare with nothing real.
"""

from orchestrator.telemetry.simulate.library import activate, build, environment, simulated
from orchestrator.telemetry.simulate.rehearsal import rehearse
from orchestrator.telemetry.simulate.scenario import (
    Scenario,
    read_scenario,
    scenario_of,
    shipped,
)

__all__ = [
    "Scenario",
    "activate",
    "build",
    "environment",
    "read_scenario",
    "rehearse",
    "scenario_of",
    "shipped",
    "simulated",
]
