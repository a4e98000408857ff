"""Takes secrets out of everything that leaves the driver: configurations, logs, errors, commands.

Two nets, because each has holes: the *values* of secret-looking environment variables are replaced
wherever they appear, and *shapes* (known token formats, ``NAME_TOKEN=…``, ``scheme://user:pw@``,
``Authorization:`` headers, private keys) are replaced whatever they came from.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from orchestrator.host.secrets import ANYWHERE, LAST_WORDS, is_secret, secret_values

REDACTED = "[redacted]"

# Bounded, so that a megabyte without a blank is not scanned again from each of its characters.
_NAME = (
    rf"[A-Za-z0-9_.\-]{{0,80}}(?:[_\-](?:{LAST_WORDS})|(?:{ANYWHERE})[A-Za-z0-9_]{{0,20}})"
    r"|AWS_[A-Z_]{1,40}|(?:[a-z_]{1,40}\.){0,6}token"
)
# After a bare "token:" in prose, only something as long as a secret is one.
_BARE_TOKEN_LENGTH = 16
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S
        ),
        REDACTED,
    ),
    # Userinfo in a URL, user name included: it may be the token itself.
    (re.compile(r"(?<=://)[^/\s@\"'<>]+@"), f"{REDACTED}@"),
    (
        re.compile(
            r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)?\s*)[^\s\"',]+"
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/\-]{8,}=*"), rf"\1{REDACTED}"),
    # NAME=value, NAME: value, "NAME": "value", --name value
    (
        re.compile(
            rf"(?P<name>(?<![A-Za-z0-9_.\-])(?:--?)?(?:{_NAME}))"
            r"(?P<glue>[\"']?\s*[=:]\s*|(?<=\w)\s+(?=[^\s=:\-]))"
            r"(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;}\])]+)",
            re.IGNORECASE,
        ),
        "",  # replaced by a function: special tokens and prose stay
    ),
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}"
            r"|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_\-]{16,}|sk-[A-Za-z0-9_\-]{16,}"
            r"|nvapi-[A-Za-z0-9_\-]{16,}|xox[abprs]-[A-Za-z0-9\-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}"
            r"|AIza[0-9A-Za-z_\-]{30,}|dapi[0-9a-f]{32}"
            r"|eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*)"
        ),
        REDACTED,
    ),
)


# Every shape above holds one of these: most strings are let through after one look.
_SUSPECT = re.compile(
    r"token|key|pass|secret|credential|auth|bearer|aws_|://|-----|hf_|api_org_|[_\-](?:pat|pwd)|dsn"
    r"|jwt|cookie|webhook|connection"
    r"|gh[pousr]_|github_pat_|glpat-|sk-|nvapi-|xox[abprs]-|AKIA|ASIA|AIza|dapi|eyJ",
    re.IGNORECASE,
)
_SHORT = 200
_CACHED_STRINGS = 8192


class Redactor:
    """Replaces secrets in text, JSON-able values, command lines and text artifacts.

    Parameters
    ----------
    literals : iterable of str
        Secret values; every occurrence of one is replaced, also where it is URL- or JSON-encoded.
    """

    def __init__(self, literals: Iterable[str] = ()) -> None:
        forms: set[str] = set()
        for value in filter(None, literals):
            forms |= {value, quote(value, safe=""), quote(value), json.dumps(value)[1:-1]}
        # Longest first: a secret that contains another must go as a whole.
        ordered = sorted(forms, key=len, reverse=True)
        self._literals = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        # Package names and the like come again with every attempt.
        self._short_text = lru_cache(_CACHED_STRINGS)(self._clean)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> Redactor:
        """A redactor that knows the secrets in ``environment`` (default: this process's)."""
        return cls(secret_values(os.environ if environment is None else environment))

    def text(self, text: str) -> str:
        """``text`` without secrets."""
        return self._short_text(text) if len(text) <= _SHORT else self._clean(text)

    def _clean(self, text: str) -> str:
        if self._literals is not None:
            text = self._literals.sub(REDACTED, text)
        if not _SUSPECT.search(text):
            return text
        for pattern, replacement in _SHAPES:
            text = pattern.sub(replacement or _replace_assignment, text)
        return text

    def value(self, value: Any) -> Any:
        """A JSON-able value without secrets; strings under a secret-looking key go whole."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                key: REDACTED
                if isinstance(item, str) and item and is_secret(str(key))
                else self.value(item)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return value

    def command(self, words: Sequence[str]) -> list[str]:
        """A command line without secrets, also those given as ``--token VALUE``."""
        out: list[str] = []
        for word in words:
            option = out[-1].lstrip("-") if out and out[-1].startswith("--") else ""
            if option and "=" not in option and is_secret(option):
                out.append(REDACTED)
            else:
                out.append(self.text(word))
        return out

    def artifact(self, content: bytes) -> bytes:
        """A text artifact without secrets; binary content (not UTF-8, or with NULs) as it is."""
        if b"\0" in content:
            return content
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return content
        return self.text(text).encode()


def _replace_assignment(match: re.Match[str]) -> str:
    name, glue, value = match["name"], match["glue"], match["value"]
    bare = name.lstrip("-")
    if not is_secret(bare) or REDACTED in value:
        return match[0]
    # "the API token is …": a blank is only an assignment after an option.
    if not glue.strip() and not name.startswith("--"):
        return match[0]
    if re.fullmatch(r"[\"']?(?:-?\d+(?:\.\d+)?|None|null|true|false)[\"']?", value, re.IGNORECASE):
        return match[0]
    if bare.lower() == "token" and glue.strip() == ":" and len(value) < _BARE_TOKEN_LENGTH:
        return match[0]
    mark = value[0] if value[0] in "\"'" else ""
    return f"{name}{glue}{mark}{REDACTED}{mark}"
