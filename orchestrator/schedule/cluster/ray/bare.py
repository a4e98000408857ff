"""Keeps an embedded Ray from starting what one sweep on one node never uses.

Even with ``include_dashboard=False`` Ray 2.60 starts an API server (and waits for it), an
autoscaler and a log monitor: three Python processes, two seconds of CPU time before the first trial
and a second at the end, and load on the measured machine between. There is no switch for them.
Where another version of Ray has no such parts any more, nothing is replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def bare_ray() -> Iterator[None]:
    """While inside, ``ray.init`` starts GCS, raylet and workers, and of the rest what they need."""
    from ray._private import node, utils

    def nothing(*_: Any, **__: Any) -> None:
        return None

    replacements: list[tuple[Any, str, Any]] = [
        (node.Node, "start_api_server", nothing),
        (node.Node, "start_monitor", nothing),
        (node.Node, "start_log_monitor", nothing),
        # The node's agent, which the raylet insists on, then loads only the core of itself.
        (utils, "get_dashboard_dependency_error", lambda: "not wanted"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in replacements:
            original = getattr(owner, name, None)
            if original is not None:
                setattr(owner, name, replacement)
                stack.callback(setattr, owner, name, original)
        yield
