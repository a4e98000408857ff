"""What the exit code of a run says of its trials."""

from __future__ import annotations

from collections.abc import Iterable

OK = "ok"
# A limit that was predicted or met is what was to be found out.
LIMITS = frozenset({"infeasible", "oom_device", "oom_host"})


def exit_code(results: Iterable[str | None], *, strict: bool = False) -> int:
    """0 when every trial has a result and at least one is ``ok``, else 1.

    Parameters
    ----------
    results : iterable of str or None
        How each trial ended, ``ok`` where it was measured before; None where it did not run.
    strict : bool
        Limits count as failures.
    """
    found = set(results)
    good = {OK} if strict else {OK, *LIMITS}
    return 0 if OK in found and found <= good else 1
