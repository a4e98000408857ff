"""What a command line means: typed configuration, sweep, expansion, identity. Pure: runs nothing.

::

    overrides -> sweep (axes, zip, exclude) -> compose (Hydra) -> trials -> Plan
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.plan.expand import build, plan_of, settings_of
    from orchestrator.plan.hydra_cli import RunArgs, hydra_flags, parse_run_args
    from orchestrator.plan.identity import canonical_json, config_hash, rebuild
    from orchestrator.plan.places import conf_directory
    from orchestrator.plan.plan import Plan, TrialState, plan_json
    from orchestrator.plan.schema import ClusterConfig, Settings
    from orchestrator.plan.trial import Trial

# Importing Hydra costs a tenth of a second; commands that plan nothing must not pay it.
_HOMES = {
    "ClusterConfig": "schema",
    "Plan": "plan",
    "RunArgs": "hydra_cli",
    "Settings": "schema",
    "Trial": "trial",
    "TrialState": "plan",
    "build": "expand",
    "canonical_json": "identity",
    "conf_directory": "places",
    "config_hash": "identity",
    "hydra_flags": "hydra_cli",
    "parse_run_args": "hydra_cli",
    "plan_json": "plan",
    "plan_of": "expand",
    "rebuild": "identity",
    "settings_of": "expand",
}

__all__ = [
    "ClusterConfig",
    "Plan",
    "RunArgs",
    "Settings",
    "Trial",
    "TrialState",
    "build",
    "canonical_json",
    "conf_directory",
    "config_hash",
    "hydra_flags",
    "parse_run_args",
    "plan_json",
    "plan_of",
    "rebuild",
    "settings_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
