"""Puts a shell's script where the shell finds it, and one line into its start-up file if it must.

::

    bash   $XDG_DATA_HOME/orchestrator/orchestrator.bash    sourced from ~/.bashrc
    zsh    $XDG_DATA_HOME/orchestrator/orchestrator.zsh     sourced from $ZDOTDIR/.zshrc
    fish   $XDG_CONFIG_HOME/fish/conf.d/orchestrator.fish   read by fish itself
"""

from __future__ import annotations

import os
import shlex
from importlib.resources import files
from pathlib import Path

from orchestrator.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """The script that completes this program in ``shell``, one of :data:`SHELLS`."""
    return (files("orchestrator.commands.completion") / f"orchestrator.{shell}").read_text(
        encoding="utf-8"
    )


def install(shell: str) -> list[Path]:
    """Write the script and have the shell read it; done twice it changes nothing more.

    Returns
    -------
    list of Path
        The files that were written or changed, the script first.

    Raises
    ------
    UsageError
        A file cannot be written.
    """
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    target, startup = {
        "bash": (data / "orchestrator/orchestrator.bash", home / ".bashrc"),
        "zsh": (
            data / "orchestrator/orchestrator.zsh",
            Path(os.environ.get("ZDOTDIR") or home) / ".zshrc",
        ),
        "fish": (config / "fish/conf.d/orchestrator.fish", None),
    }[shell]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(script(shell), encoding="utf-8")
        if startup is None:
            return [target]
        return [target, *_source(target, startup)]
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror}",
            where=str(error.filename or target),
            fix=f"Put what `completion {shell}` prints where {shell} reads it",
        ) from error


def _source(target: Path, startup: Path) -> list[Path]:
    """Have ``startup`` read ``target``, unless it already does."""
    line = f"source {shlex.quote(str(target))}"
    known = startup.read_text(encoding="utf-8") if startup.exists() else ""
    if line in known.splitlines():
        return []
    gap = "" if not known or known.endswith("\n") else "\n"
    with startup.open("a", encoding="utf-8") as file:
        file.write(f"{gap}{line}\n")
    return [startup]
