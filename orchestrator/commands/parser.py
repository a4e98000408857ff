"""The commands: a first bare word is one, anything else is a Hydra override and means ``run``.

Only what a command needs is imported, inside it: ``--help`` must not wait for Ray or torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.output import echo
from orchestrator.commands.plain_signs import use_plain_signs
from orchestrator.errors import Interrupted, OrchestratorError, UsageError, nearest

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def _complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """What a shell may offer for a word; imported when a shell asks."""

    def found(
        context: click.Context, parameter: click.Parameter, word: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from orchestrator.commands.completion import candidates

        return [CompletionItem(offered) for offered in getattr(candidates, kind)(context, word)]

    return found


class OverridesCommand(click.Command):
    """Takes words that Hydra reads, flags among them; click knows the flags to complete them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        shown = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
        self.params += [
            click.Argument(["overrides"], nargs=-1, shell_complete=_complete("overrides")),
            click.Option(["--cfg", "-c"], type=click.Choice(["all", "hydra", "job"])),
            click.Option(["--config-dir", "-cd"], type=click.Path()),
            click.Option(["--config-name", "-cn"], type=click.Path()),
            click.Option(["--info", "-i"], type=click.Choice(shown)),
            click.Option(["--json"], is_flag=True),
            click.Option(["--multirun", "-m"], is_flag=True),
            *([click.Option(["--strict"], is_flag=True)] if self.name == "run" else []),
        ]

    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        """All of them are the command's own business."""
        context.params["overrides"] = tuple(words)
        return []


OVERRIDES = click.argument(
    "overrides", nargs=-1, type=click.UNPROCESSED, shell_complete=_complete("overrides")
)
STORE_OVERRIDES = click.argument(
    "overrides",
    nargs=-1,
    metavar="[tracking=… tracking.root=…]",
    shell_complete=_complete("tracking"),
)
HASH = click.argument("prefix", metavar="HASH", shell_complete=_complete("hashes"))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print data as JSON on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Measure language models: sweeps over a cluster, every number with its conditions."""


@commands.command(cls=OverridesCommand)
def run(overrides: tuple[str, ...]) -> int:
    """Plan, skip what is done, run the rest, record, report (the default command)."""
    from orchestrator.commands.run import run_command

    return run_command(list(overrides))


@commands.command(cls=OverridesCommand)
def plan(overrides: tuple[str, ...]) -> int:
    """Show what would run: hash, axes, cached or new, resources. Runs nothing."""
    from orchestrator.commands.plan import plan_command

    return plan_command(list(overrides))


@commands.command()
@HASH
@STORE_OVERRIDES
@AS_JSON
def show(**given: Any) -> int:
    """Show one trial: configuration, attempts, metrics, verdict, provenance, artifacts."""
    from orchestrator.commands.show import show_command

    return show_command(**given)


@commands.command()
@HASH
@OVERRIDES
@AS_JSON
def reproduce(**given: Any) -> int:
    """Run exactly that configuration once more, then compare with earlier attempts."""
    from orchestrator.commands.reproduce import reproduce_command

    return reproduce_command(**given)


@commands.command()
@click.argument("a", shell_complete=_complete("selections"))
@click.argument("b", shell_complete=_complete("selections"))
@STORE_OVERRIDES
@click.option("--metric", "metrics", multiple=True, help="Only these metrics (repeatable).")
@click.option("--allow-different", is_flag=True, help="Compare across machines or content.")
@AS_JSON
def compare(**given: Any) -> int:
    """Compare two sweeps, hashes or hardware fingerprints: B over A, with CIs and a verdict."""
    from orchestrator.commands.compare import compare_command

    return compare_command(**given)


@commands.command()
@click.argument(
    "words",
    nargs=-1,
    metavar="[NEW] [tracking=… tracking.root=…]",
    shell_complete=_complete("selections"),
)
@click.option(
    "--baseline",
    required=True,
    help="A sweep, a hash, or a sweep's MLflow run id.",
    shell_complete=_complete("selections"),
)
@click.option(
    "--rules",
    default="default",
    show_default=True,
    help="conf/gate/NAME.yaml or a path.",
    shell_complete=_complete("rules"),
)
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit XML.")
@click.option("--allow-different", is_flag=True, help="Compare across machines or content.")
@AS_JSON
def gate(words: tuple[str, ...], **given: Any) -> int:
    """Check NEW (by default the newest run) against the rules: exit 0 pass, 1 regression,
    2 inconclusive, 3 incomparable, 4 not judged: a mistake in the command, the store, a bug."""
    from orchestrator.commands.gate import gate_command

    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UsageError(f"one NEW at most, not {len(names)}", where="gate")
    new = names[0] if names else None
    return gate_command(new=new, overrides=overrides, **given)


@commands.command()
@click.argument("word", metavar="SWEEP|HASH", shell_complete=_complete("selections"))
@STORE_OVERRIDES
@click.option("--metric", help="By default the one that decides in the trial's table.")
@click.option(
    "--site",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write index.html there: a figure a trial, steps newest first.",
)
@click.option("--since", metavar="DATE|AGE", help="Only attempts since 2026-11-01, or in 30d.")
@AS_JSON
def history(**given: Any) -> int:
    """Show a metric over time, where it stepped and what differed there: exit 0, 1 a new
    regression in the last run, 4 an error."""
    from orchestrator.commands.history import history_command

    return history_command(**given)


@commands.command()
@HASH
@OVERRIDES
@click.option(
    "--good",
    required=True,
    help="Environment, run, hash or c:… without the change.",
    shell_complete=_complete("ends"),
)
@click.option(
    "--bad", required=True, help="The same, with the change.", shell_complete=_complete("ends")
)
@click.option("--metric", help="What changed; the task's first where left out: tpot_s.")
@click.option("--versions", is_flag=True, help="Then find the version of the culprit that did it.")
@click.option(
    "--config-dir",
    "-cd",
    "config_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A directory of your own groups.",
)
@AS_JSON
def bisect(**given: Any) -> int:
    """Find the package that changed a number between two environments: exit 0 found,
    1 no difference, 2 undecided, 4 a mistake in the command, the store, a bug."""
    from orchestrator.commands.bisecting import bisect_command

    return bisect_command(**given)


@commands.command()
@click.argument("sweep", shell_complete=_complete("sweeps"))
@STORE_OVERRIDES
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where files are written; by default here.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["leaderboard"]),
    help="leaderboard: one JSON object a trial, to be merged with those of others.",
)
@AS_JSON
def report(**given: Any) -> int:
    """Make tables and plots again from what is recorded: HTML, Markdown, CSV, JSON."""
    from orchestrator.commands.report import report_command

    return report_command(**given)


@commands.command()
@STORE_OVERRIDES
@AS_JSON
def status(**given: Any) -> int:
    """Show the sweeps that are running now."""
    from orchestrator.commands.status import status_command

    return status_command(**given)


@commands.command()
@click.argument("sweep", shell_complete=_complete("running"))
@STORE_OVERRIDES
def cancel(**given: Any) -> int:
    """Stop a running sweep cleanly; what it has measured stays."""
    from orchestrator.commands.status import cancel_command

    return cancel_command(**given)


@commands.command()
@STORE_OVERRIDES
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5000, show_default=True, type=click.IntRange(0, 65535))
def ui(**given: Any) -> int:
    """Open the MLflow UI on this store."""
    from orchestrator.commands.ui import ui_command

    return ui_command(**given)


@commands.command()
@STORE_OVERRIDES
def sync(**given: Any) -> int:
    """Record what was spooled while the tracking store was unreachable."""
    from orchestrator.commands.sync import sync_command

    return sync_command(**given)


@commands.command()
@click.option("--prune", metavar="KIND", help="Remove all of this kind first.")
@AS_JSON
def cache(prune: str | None, as_json: bool) -> int:
    """Show what is kept between attempts: environments, conversions, references."""
    from orchestrator.commands.cache import cache_command

    return cache_command(prune, as_json)


@commands.command()
@STORE_OVERRIDES
@click.option(
    "--simulate",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Play an NVML scenario instead of looking at real GPUs.",
)
@AS_JSON
def doctor(**given: Any) -> int:
    """Say what this machine or cluster can do and what is misconfigured, with the fix."""
    from orchestrator.commands.doctor import doctor_command

    return doctor_command(**given)


@commands.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--install", is_flag=True, help="Put it where the shell reads it.")
@click.option("--line", hidden=True, help="Print what may follow this line, a word a line.")
def completion(shell: str, install: bool, line: str | None) -> int:
    """Complete commands, overrides, sweeps and hashes in a shell: print its script."""
    if line is not None:
        from orchestrator.commands.completion.candidates import candidates

        echo("\n".join(candidates(line, commands)))
        return 0
    from orchestrator.commands.completion.install import install as put
    from orchestrator.commands.completion.install import script

    if not install:
        echo(script(shell), nl=False)
        return 0
    for path in put(shell):
        echo(path)
    echo(f"a new {shell} completes; the one you are in does not yet", err=True)
    return 0


def main(argv: Sequence[str]) -> int:
    """Run one command line; returns its exit code: 0, 1, 2 or 130.

    ``gate``, ``bisect`` and ``history`` have their own. What keeps these from judging is 4: their
    1 and 2 are judgements.
    """
    use_plain_signs()
    words = [word for word in argv if word not in ("-v", "--verbose")]
    verbose = len(words) < len(argv)
    unjudged = 4 if words[:1] in (["gate"], ["bisect"], ["history"]) else None
    try:
        if not words or words[0] not in commands.commands:
            _refuse_unknown_command(words)
            words.insert(0, "run")
        code = commands.main(words, prog_name="python -m orchestrator", standalone_mode=False)
        return int(code or 0)
    except Interrupted as error:
        return _fail(str(error), error.exit_code, verbose, word="interrupted")
    except OrchestratorError as error:
        return _fail(str(error), unjudged or error.exit_code, verbose)
    except click.ClickException as error:
        return _fail(_in_our_form(error), unjudged or UsageError.exit_code, verbose)
    except (KeyboardInterrupt, click.Abort):
        return _fail("nothing was lost", Interrupted.exit_code, verbose, word="interrupted")
    except BrokenPipeError:
        # `plan --json | head`: nobody is left to tell; the interpreter must not complain at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return unjudged or 0
    except Exception as error:
        if isinstance(error, RuntimeError) and "home directory" in str(error):
            # pathlib's, of a ~ that somebody wrote.
            told = UsageError(
                "this user has no home directory",
                where="~ in a path",
                fix="Write the path out, and set ORCHESTRATOR_CACHE=DIRECTORY",
            )
            return _fail(str(told), unjudged or told.exit_code, verbose)
        what = f"{type(error).__name__}: {error} (this is a bug; -v shows where)"
        return _fail(what, unjudged or 1, verbose)


def _refuse_unknown_command(words: Sequence[str]) -> None:
    """A bare first word that no command has is a slip of the finger, not a Hydra override."""
    if not words or words[0][:1] in "-+~" or "=" in words[0]:
        return
    raise UsageError(f"no command {words[0]!r}", fix=nearest(words[0].lower(), commands.commands))


def _in_our_form(error: click.ClickException) -> str:
    """click's message as one of ours: where, what, what to do."""
    what = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    where = context.info_name if context is not None and context.parent is not None else None
    known = f"`python -m orchestrator {where or ''} --help` shows what there is"
    return str(UsageError(what[:1].lower() + what[1:], where=where, fix=" ".join(known.split())))


def _fail(message: str, code: int, verbose: bool, word: str = "error") -> int:
    if verbose:
        traceback.print_exc()
    echo(f"{word}: {' '.join(message.split())}", err=True)
    return code
