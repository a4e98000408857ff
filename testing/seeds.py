"""The seed of tests that draw: a fixed one, or your own in ``ORCHESTRATOR_TEST_SEED``."""

from __future__ import annotations

import os

DEFAULT_SEED = 20_240_229


def drawing_seed() -> int:
    """What statistical tests draw from; another seed must not make them fail."""
    return int(os.environ.get("ORCHESTRATOR_TEST_SEED", DEFAULT_SEED))
