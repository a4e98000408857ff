"""``sync``: record what was spooled while the store was away."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.commands.output import say


def sync_command(overrides: Sequence[str]) -> int:
    """Record what waits in the spool; 1 if a record had to be set aside."""
    from orchestrator.plan.expand import settings_of
    from orchestrator.record import open_store, sync

    store = open_store(settings_of(overrides).tracking)
    result = sync(store, message=say)
    busy = f", {result.in_use} spools belong to running sweeps" if result.in_use else ""
    say(f"{result.written} attempts recorded in {store.where}{busy}")
    return 1 if result.messages else 0
