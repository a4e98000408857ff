"""Where the built-in configuration lies."""

from __future__ import annotations

from pathlib import Path

import orchestrator
from orchestrator.errors import ConfigError

ROOT_CONFIG = "config"


def conf_directory() -> Path:
    """The built-in configuration: packaged as ``orchestrator/conf``, or beside it in a checkout.

    Raises
    ------
    ConfigError
        If neither place has it.
    """
    package = Path(orchestrator.__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / f"{ROOT_CONFIG}.yaml").is_file():
            return candidate
    raise ConfigError(
        "the built-in configuration is missing",
        where=str(package / "conf"),
        fix="Install the package again",
    )
