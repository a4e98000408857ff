"""Signs that a stream cannot write come out as plain ones: an ASCII terminal is no error.

A codec's error handler does it at the one place where every line passes, whoever drew it.
"""

from __future__ import annotations

import codecs
import io
import re
import sys

HANDLER = "plain-signs"
# What follows a sign that takes a character more, and one of the spaces before the next column.
_NUMBER = re.compile(r"([!-~\x1b]+) (?= )")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # Where everything can be written, nobody waits for it.
    from orchestrator.report.show.signs import PLAIN

    plain = "".join(PLAIN.get(sign, "?") for sign in error.object[error.start : error.end])
    number = _NUMBER.match(error.object, error.end)
    if number is None or len(plain) == error.end - error.start:
        return plain, error.end
    return plain + number[1], number.end()


def use_plain_signs() -> None:
    """Let stdout and stderr write plain signs for those that their encoding lacks."""
    codecs.register_error(HANDLER, _plainly)
    for stream in (sys.stdout, sys.stderr):
        # Something else in their place (a test's, a notebook's) writes what it likes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)
