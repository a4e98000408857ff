"""Hydra's own flags (``--help``, ``--cfg``, ``--info``, completion …) on this configuration.

Hydra's ``main`` is not used: it would run jobs of its own, and make directories and log files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from orchestrator.errors import ConfigError, UsageError, no_effect

HELP_WIDTH = 100

# Flag to whether a value follows it as a word of its own.
HYDRA_FLAGS = (
    ("--help", "-h"),
    ("--hydra-help",),
    ("--cfg", "-c"),
    ("--info", "-i"),
    ("--shell-completion", "-sc"),
)
COMMANDS_WITH_OVERRIDES = ("run", "plan")
PROGRAM = "orchestrator"


@dataclass(frozen=True)
class RunArgs:
    """Words of a command line that takes overrides, sorted.

    Attributes
    ----------
    overrides : tuple of str
        In Hydra's grammar, as typed.
    config_dirs : tuple of str
        Directories of a person's own groups, in order.
    config_name : str
        Root file, without ``.yaml``.
    """

    overrides: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    config_name: str = "config"
    verbose: bool = False
    json: bool = False
    strict: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, fix="--help shows what there is")


def parse_run_args(argv: Sequence[str]) -> RunArgs:
    """Sort the words after ``run`` or ``plan``.

    Raises
    ------
    UsageError
        An unknown flag, or a flag without its value.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    _add_places(parser)
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--verbose", "-v", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--strict", action="store_true")
    found, unknown = parser.parse_known_intermixed_args(list(argv))
    flags = [word for word in unknown if word.startswith("-")]
    if flags:
        raise UsageError(f"unknown flag {flags[0]}", fix="--help shows what there is")
    del found.multirun  # several values sweep without it too
    found.overrides = (*found.overrides, *unknown)
    found.config_dirs = tuple(found.config_dirs)
    return RunArgs(**vars(found))


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-dir", "-cd", action="append", default=[], dest="config_dirs")
    parser.add_argument(
        "--config-name", "-cn", default="config", type=lambda name: name.removesuffix(".yaml")
    )


def hydra_flags(argv: Sequence[str]) -> int | None:
    """Do what a flag of Hydra's asks for, if there is one.

    Parameters
    ----------
    argv : sequence of str
        The command line without the program. A leading ``run`` or ``plan`` is skipped; after any
        other bare word nothing is done.

    Returns
    -------
    int or None
        The exit code; None if none of the flags is there and nothing was done.

    Raises
    ------
    ConfigError, UsageError
        As :func:`orchestrator.plan.expand.build`.
    """
    words = [word for word in argv if word not in ("-v", "--verbose")]
    if words and words[0] in COMMANDS_WITH_OVERRIDES:
        words = words[1:]
    if words and words[0][:1] not in "-+~" and "=" not in words[0]:
        return None  # another command, with a --help of its own
    known = {flag for names in HYDRA_FLAGS for flag in names}
    asked = [word for word in words if word.startswith("-") and word.split("=")[0] in known]
    if not asked:
        return None
    for flag in ("--json", "--strict"):
        if flag in words:
            raise no_effect(flag, asked[0])
    return _dispatch(words)


def _dispatch(words: list[str]) -> int:
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra

    from orchestrator.plan.repository import TypedLoader, search_path

    places = _Parser(add_help=False, allow_abbrev=False)
    _add_places(places)
    where, rest = places.parse_known_args(words)
    flags = get_args_parser()
    flags.exit_on_error = False
    try:
        args, unknown = flags.parse_known_intermixed_args(rest)
    except argparse.ArgumentError as error:
        raise UsageError(str(error), fix="--hydra-help shows what there is") from error
    if unknown or args.config_path or args.run:
        flag = (unknown or ["--config-path" if args.config_path else "--run"])[0]
        raise UsageError(f"{flag} is not known here", fix="--help shows what there is")
    asked = [args.help, args.hydra_help, args.cfg, args.info, args.shell_completion]
    if sum(bool(flag) for flag in asked) > 1:
        raise UsageError("one of --help, --hydra-help, --cfg, --info, -sc at a time")
    for flag in ("package", "resolve"):
        if getattr(args, flag) and not args.cfg:
            raise UsageError("needs --cfg", where=f"--{flag}", fix=f"Write --cfg job --{flag}")
    GlobalHydra.instance().clear()
    loader = TypedLoader(search_path(where.config_dirs))
    hydra = Hydra(task_name=PROGRAM, config_loader=loader)
    GlobalHydra.instance().initialize(hydra)
    try:
        return _show(hydra, args, flags, where.config_name, where.config_dirs)
    finally:
        GlobalHydra.instance().clear()


def _show(
    hydra: Any,
    args: argparse.Namespace,
    flags: argparse.ArgumentParser,
    config_name: str,
    config_dirs: Sequence[str],
) -> int:
    from orchestrator.plan.messages import translated

    if args.shell_completion:
        return _complete(hydra, args.overrides, config_name)
    if args.hydra_help:
        with translated():
            hydra.hydra_help(config_name=config_name, args_parser=flags, args=args)
        return 0
    # The same reading of the line as a run's: typos are named, a sweep's `set` is applied.
    args.overrides = _single(args.overrides, config_dirs, config_name)
    with translated():
        if args.help:
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                hydra.app_help(config_name=config_name, args_parser=flags, args=args)
            print(_wrapped(text.getvalue()), end="")
        elif args.cfg:
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    hydra.show_cfg(
                        config_name=config_name,
                        overrides=args.overrides,
                        cfg_type=args.cfg,
                        package=args.package,
                        resolve=args.resolve,
                    )
            except SystemExit as error:  # after a line of its own
                raise UsageError(
                    f"nothing is at {args.package}",
                    where="--package",
                    fix=f"--cfg {args.cfg} shows what there is",
                ) from error
        else:
            hydra.show_info(args.info, config_name=config_name, overrides=args.overrides)
    return 0


def _wrapped(text: str) -> str:
    """Hydra lists the options of a group in one line, however many there are."""
    lines = (
        textwrap.fill(line, HELP_WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        if len(line) > HELP_WIDTH
        else line
        for line in text.splitlines()
    )
    return "\n".join(lines) + "\n"


def _single(overrides: Sequence[str], config_dirs: Sequence[str], config_name: str) -> list[str]:
    """Overrides for the one configuration that is shown, in a form that Hydra itself takes.

    The line is read as a run reads it, so that typos are named and a sweep's ``set`` applies.
    """
    from omegaconf import OmegaConf

    from orchestrator.plan.axes import COMMAND_LINE, Axis, Fixed, parse
    from orchestrator.plan.choices import split
    from orchestrator.plan.compose import Composer
    from orchestrator.plan.sweep import read
    from orchestrator.plan.values import assign

    hydras = [word for word in overrides if word.lstrip("+~").startswith("hydra")]
    own = [word for word in overrides if word not in hydras]
    if not own and config_name == "config":
        return hydras
    for word in own:
        item = parse(word, lambda key: None, COMMAND_LINE)
        if isinstance(item, Axis):
            raise ConfigError(
                f"{word} is {item.count} configurations, and this shows one",
                fix=f"Choose one, or list them all: plan {word}",
            )
    composer = Composer(config_dirs, config_name)
    space = read(own, composer)
    narrowed = [
        Fixed(a.key, a.values()[0], a.prefix) for a in space.axes if a.key in space.narrowed
    ]
    groups, values = split([*space.fixed, *narrowed], composer)
    config = composer.compose(groups)
    for value in values:
        assign(config, value)
    words = [word for word in own if word.lstrip("+").startswith("sweep.")]
    words += [f"+{word.lstrip('+')}" for word in own if word.lstrip("+").startswith("sweep=")]
    words += [f"{key}={option}" for key, option in groups.items()]
    for value in values:
        fitted = value.value
        if not isinstance(fitted, (dict, list)) and value.prefix != "~":
            fitted = OmegaConf.select(config, value.key)
        mark = "++" if value.prefix == "+" else value.prefix
        shown = _for_hydra(fitted)
        text = "" if value.prefix == "~" else f"={shown}"
        words.append(f"{mark}{value.key}{text}")
    return [*hydras, *words]


# Words that Hydra reads as something else than text.
_NO_TEXT = frozenset({"true", "false", "null", "inf", "nan"})


def _for_hydra(value: Any) -> str:
    """A value as Hydra's grammar reads it back: text in quotes unless it is a plain word."""
    from hydra.core.override_parser.types import Override

    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z_]*", value)
    if isinstance(value, str) and (not plain or value.lower() in _NO_TEXT):
        escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ("\\" if m[2] else "") + m[2], value)
        return f'"{escaped}"'
    return Override._get_value_element_as_str(value)


def _complete(hydra: Any, words: Sequence[str], config_name: str) -> int:
    from orchestrator.plan.messages import translated

    # Hydra's scripts know `python FILE` and installed programs; `python -m` and a leading command
    # are put into the second form.
    line = os.environ.get("COMP_LINE", "")
    line = re.sub(rf"^\S*python\S*\s+-m\s+{PROGRAM}\b", PROGRAM, line)
    commands = "|".join(COMMANDS_WITH_OVERRIDES)
    os.environ["COMP_LINE"] = re.sub(rf"^(\S+)\s+(?:{commands})\s", r"\1 ", line)
    name, sys.argv[0] = sys.argv[0], PROGRAM
    try:
        with translated("--shell-completion"):
            hydra.shell_completion(config_name=config_name, overrides=list(words))
    finally:
        sys.argv[0] = name
    return 0
