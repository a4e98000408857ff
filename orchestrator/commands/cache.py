"""``cache``: what is kept between attempts, and how to be rid of it."""

from __future__ import annotations

from orchestrator.commands.output import emit, emit_json, say
from orchestrator.engines.cache import cache_root, forget, kept
from orchestrator.errors import UsageError, nearest
from orchestrator.measure.wording import counted
from orchestrator.report.show.units import quantity


def cache_command(prune: str | None, as_json: bool) -> int:
    """List what the cache holds by kind; with ``prune`` remove a kind first."""
    if prune is not None:
        kinds = {kind.name: kind for kind in kept()}
        if prune not in kinds:
            raise UsageError(f"the cache has no {prune!r}", fix=nearest(prune, kinds))
        removed = kinds[prune]
        forget(prune)
        size = quantity(removed.bytes, "bytes")
        say(f"removed {counted(removed.entries, 'item')} of {prune}, {size}")
    found = kept()
    if as_json:
        emit_json(
            {
                "root": str(cache_root()),
                "kinds": [{"kind": k.name, "entries": k.entries, "bytes": k.bytes} for k in found],
            }
        )
        return 0
    say(f"{cache_root()}: anything here may be removed, and is made again when it is needed")
    for kind in found:
        emit(f"{kind.name:24} {kind.entries:6} {quantity(kind.bytes, 'bytes'):>12}")
    return 0
