"""Which nodes have which model ready, as far as this driver has seen; nothing is asked of them.

A node keeps what it has downloaded or converted once, so the next trial of the same model starts
sooner there. It is a preference only: a slot that is free elsewhere is never left waiting.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Random weights are drawn anew by each attempt, wherever it runs.
NOT_KEPT = "random"


class ModelAffinity:
    """Nodes by model, in the order in which they last began to use it."""

    def __init__(self) -> None:
        self._nodes: dict[str, dict[str, None]] = {}

    def began(self, identity: Mapping[str, Any], node_id: str) -> None:
        """An attempt has started on a node: its model is there, or soon will be."""
        key = _model(identity)
        if key is not None:
            nodes = self._nodes.setdefault(key, {})
            nodes.pop(node_id, None)
            nodes[node_id] = None

    def lost(self, node_id: str) -> None:
        """A node is gone, with what it had."""
        for nodes in self._nodes.values():
            nodes.pop(node_id, None)

    def best(self, identity: Mapping[str, Any]) -> str | None:
        """The node that has had the model ready for longest without another attempt of it."""
        return next(iter(self._nodes.get(_model(identity) or "", ())), None)


def _model(identity: Mapping[str, Any]) -> str | None:
    model = identity.get("model") or {}
    if model.get("source", NOT_KEPT) == NOT_KEPT:
        return None
    return json.dumps(model, sort_keys=True)
