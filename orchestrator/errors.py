"""Every error this program raises on purpose, as one tree.

::

    OrchestratorError            exit 1   what, where, what to do: one line
    |-- UsageError               exit 2   the person asked for something that cannot be meant
    |   `-- ConfigError          exit 2   a configuration value, group or sweep is wrong
    |-- ClusterError             exit 2   Ray cannot give what was asked for
    |-- StoreError               exit 2   the tracking store or the spool cannot be used
    |   `-- StoreUnavailable     exit 2   ... for now: the same call may succeed later
    |-- Interrupted              exit 130 a person or a signal stopped the sweep
    `-- TaskError                -        raised inside a measured process; becomes an outcome
        |-- Infeasible           outcome infeasible
        |-- OutOfMemory          outcome oom_device | oom_host
        |-- InputError           outcome error: a model, file or text cannot be used
        `-- Mismatch             outcome error: what was asked for did not happen (engaged check)

Errors of Ray, MLflow, NVML and torch are translated into these at one boundary each
(``schedule/``, ``record/``, ``telemetry/``, the measured child).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_SHOWN = 12
_SHOWN_LETTERS = 80  # a list longer than this hides the answer that stands before it


class OrchestratorError(Exception):
    """An error a person can act on.

    Parameters
    ----------
    what : str
        What is wrong, without a trailing full stop.
    where : str, optional
        The file, override, node or trial it concerns.
    fix : str, optional
        What to type or change.
    """

    exit_code: int = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line}. {self.fix}" if self.fix else line

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling of exceptions.
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(
    kind: type[OrchestratorError], what: str, where: str | None, fix: str | None
) -> OrchestratorError:
    return kind(what, where=where, fix=fix)


class UsageError(OrchestratorError):
    """The person asked for something that cannot be meant."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value, group or sweep is wrong."""


class ClusterError(OrchestratorError):
    """Ray cannot give what was asked for."""

    exit_code = 2


class StoreError(OrchestratorError):
    """The tracking store or the spool cannot be used."""

    exit_code = 2


class StoreUnavailable(StoreError):
    """The tracking store does not answer; the same call may succeed later."""


class Interrupted(OrchestratorError):
    """A person or a signal stopped the sweep."""

    exit_code = 130


class TaskError(OrchestratorError):
    """Raised inside a measured process; becomes the attempt's outcome."""

    outcome: str = "error"


class Infeasible(TaskError):
    """This machine or device cannot do what the configuration asks for."""

    outcome = "infeasible"


class OutOfMemory(TaskError):
    """The device (``device=True``) or the host ran out of memory."""

    outcome = "oom_host"

    def __init__(
        self, what: str, *, where: str | None = None, fix: str | None = None, device: bool = False
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.outcome = "oom_device" if device else "oom_host"


class InputError(TaskError):
    """A model, file or text cannot be used."""


class Mismatch(TaskError):
    """The engaged check failed: what was asked for did not happen."""


def no_effect(flag: str, on: str) -> UsageError:
    """What to raise for a flag that would change nothing of ``on``."""
    return UsageError(f"has no effect on {on}", where=flag, fix="Leave it out")


def home_directory(instead: str) -> Path:
    """The user's home; some user ids (of a container, say) have none.

    Parameters
    ----------
    instead : str
        The variable that names a place which is looked for there otherwise.

    Raises
    ------
    UsageError
        There is none.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise UsageError(
            "this user has no home directory", where=instead, fix=f"Set {instead}=DIRECTORY"
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence naming what ``name`` probably meant, and what there is."""
    import difflib  # only a mistake needs it

    options = sorted(set(known))
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if not close:
        # `tokens` for `task.prompt_tokens`: compare with the last part of dotted names too.
        tail = name.rsplit(".", 1)[-1]
        tails = {option.rsplit(".", 1)[-1]: option for option in reversed(options)}
        close = [tails[t] for t in difflib.get_close_matches(tail, tails, n=3, cutoff=0.6)]
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    if not options:
        return f"{meant}None are known".strip()
    if close and sum(map(len, options)) > _SHOWN_LETTERS:
        return meant.strip()
    rest = f" … ({len(options)} in all)" if len(options) > _SHOWN else ""
    return f"{meant}Known: {', '.join(options[:_SHOWN])}{rest}"


def one_line(error: object) -> str:
    """What an error says, in one line of at most 300 characters; its type where that is nothing."""
    # Half of a surrogate pair, which JSON may name, can neither be shown nor recorded.
    text = str(error).encode(errors="backslashreplace").decode()
    return " ".join(text.split())[:300] or type(error).__name__
