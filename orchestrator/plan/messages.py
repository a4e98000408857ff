"""Turns what Hydra, OmegaConf and YAML raise into one clear line each; the only place that does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import ConfigError


def condensed(text: str) -> str:
    """The first sentence-like part of a many-line message, on one line."""
    lines = [line.strip() for line in text.strip().splitlines()]
    lines = [line for line in lines if line and not line.startswith(("object_type=", "reference"))]
    kept = lines[:3]
    for position, line in enumerate(kept):
        if line.startswith("full_key:"):
            kept[position] = f"({line.removeprefix('full_key:').strip()})"
        if line.startswith(("Config search path", "See https", "To append")):
            kept = kept[:position]
            break
    return re.sub(r"\s+", " ", " ".join(kept)).rstrip(".")


@contextmanager
def translated(where: str | None = None) -> Iterator[None]:
    """Let only :class:`ConfigError` out of the block; the original stays as its cause."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (ConfigError, BrokenPipeError):
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}:{mark.line + 1}" if mark is not None else where
        problem = getattr(error, "problem", None) or condensed(str(error))
        raise ConfigError(f"not valid YAML: {problem}", where=place) from error
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        inner = cause if isinstance(cause, OmegaConfBaseException) else error
        raise ConfigError(condensed(str(inner) or str(error)), where=where) from error
    except RecursionError as error:
        what = "is nested too deeply, or its defaults name it again"
        raise ConfigError(what, where=where) from error
    except (ValueError, AssertionError, AttributeError, OSError) as error:
        # Hydra's loader raises these bare for malformed defaults lists and unreadable files.
        raise ConfigError(condensed(str(error)) or type(error).__name__, where=where) from error
