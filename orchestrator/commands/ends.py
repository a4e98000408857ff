"""What ``--good`` and ``--bad`` of a bisection mean: each an environment.

::

    NAME          an environment of conf/environment, or of a directory of --config-dir
    <config hash> the environment of that trial
    <run id>      the environment that the run's attempts of the trial ran in
    c:…           the same, of its attempts under those conditions

Attempts that ran without an environment recorded the versions of their engine's packages; these are
resolved to one, with all that they require.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.attempt import AttemptReport
from orchestrator.conditions import joint_id
from orchestrator.environments.lock import locked, why_unresolved
from orchestrator.errors import UsageError
from orchestrator.measure.registry import find_task
from orchestrator.plan.compose import Composer
from orchestrator.record import AttemptSummary, Store
from orchestrator.record.selection import attempts_of

Environment = dict[str, Any]
#: What names of the sweeps begin with under which rounds are recorded.
BISECTION = "bisect-"


def end_of(
    word: str,
    flag: str,
    *,
    store: Store,
    workload: Mapping[str, Any],
    config_dirs: Sequence[Path] = (),
) -> Environment:
    """``python`` and ``packages`` that a word means.

    Parameters
    ----------
    word, flag : str
        What was typed, and after what.
    workload : identity
        The trial that is bisected; of runs and conditions its attempts count, in any environment.

    Raises
    ------
    UsageError
        It means nothing, several environments, or one that cannot be resolved.
    """
    composer = Composer(config_dirs)
    if composer.has_option("environment", word):
        composed = composer.compose({"task": "noop", "environment": word})
        found = locked(dict(composed.environment))
        if found is None:
            fix = "Name an environment, or a run that was made without one"
            raise UsageError(f"{word} is no environment of its own", where=flag, fix=fix)
        return _resolved(found, word, flag)
    found_in: dict[str, Environment] = {}
    for summary in (s for s in _recorded(word, store) if s.outcome):
        identity = store.identity(summary.run_id)
        if _workload(identity) != _workload(workload):
            continue
        environment = identity["environment"]
        if environment is None:
            environment = _of_software(store.load(summary.run_id), identity, word, flag)
        found_in.setdefault(repr(sorted(environment["packages"].items())), environment)
    if len(found_in) != 1:
        many = f"{len(found_in)} environments" if found_in else "no recorded attempt of this trial"
        raise UsageError(
            f"{word} means {many}",
            where=flag,
            fix="Name an environment, a config hash, a run, or conditions as `show` lists them",
        )
    return found_in.popitem()[1]


def _workload(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured, in whatever environment."""
    return {**identity, "environment": None}


def _recorded(word: str, store: Store) -> Sequence[AttemptSummary]:
    every = [summary for group in store.attempts().values() for summary in group]
    if word.startswith("c:"):
        # Mixtures that a bisection made share the conditions of an end: they name few packages.
        made = (s for s in every if not s.sweep.startswith(BISECTION))
        return [s for s in made if s.conditions and joint_id(s.conditions) == word]
    if found := [s for s in every if len(word) >= 8 and s.run_id.startswith(word)]:
        return found
    return attempts_of(store, word)


def _of_software(
    report: AttemptReport, identity: Mapping[str, Any], word: str, flag: str
) -> Environment:
    """An environment of the versions that were recorded of an attempt without one."""
    software = report.conditions.software if report.conditions is not None else {}
    names = find_task(identity["task"]["name"]).packages_for(identity)
    versions = {name: software[name] for name in names if name in software}
    odd = next((f"{n} {v}" for n, v in versions.items() if not v or "@" in v), None)
    if odd or not versions:
        how = "without an environment, and no versions were recorded"
        raise UsageError(
            f"{word} ran {f'with {odd}, which no index has' if odd else how}",
            where=flag,
            fix="Measure in environments: docs/environments.md",
        )
    asked = {
        "python": software["python"],
        "requirements": [f"{name}=={version}" for name, version in sorted(versions.items())],
        "overrides": [],
        "pins": {},
    }
    return _resolved(locked(asked) or {}, word, flag)


def _resolved(found: Environment, word: str, flag: str) -> Environment:
    if reason := why_unresolved(found):
        raise UsageError(f"{word}: {reason}", where=flag)
    return found
