"""Completion in bash, zsh and fish: the words, the shells' scripts, and putting them in place."""

from __future__ import annotations

from orchestrator.commands.completion.install import SHELLS, install, script

__all__ = ["SHELLS", "install", "script"]
