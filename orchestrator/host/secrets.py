"""Which names are taken to hold secrets, and what of an environment must therefore not leave it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

#: The last word of a name that holds a secret: ``HF_TOKEN``, ``OPENAI_KEY``, ``hub.token``.
LAST_WORDS = r"TOKEN|KEY|PAT|PASS|PWD|AUTH|DSN|JWT|COOKIE"
#: What says so anywhere in a name: ``PGPASSWORD``, ``GOOGLE_APPLICATION_CREDENTIALS``.
ANYWHERE = (
    r"PASSW(?:OR)?D|PASSPHRASE|SECRET|CREDENTIAL|WEBHOOK|CONNECTION[_\-.]?STRING"
    r"|(?:API|ACCESS|PRIVATE|SIGNING|ENCRYPTION)[_\-.]?KEY"
)
_SECRET = re.compile(
    rf"(?:^|[_\-.])(?:{LAST_WORDS}|AUTHORIZATION)(?:[_\-.](?:FILE|PATH|\d+))?$"
    rf"|[A-Z]TOKEN$|{ANYWHERE}|^AWS_",
    re.IGNORECASE,
)
# Named like a secret, public by nature: what is configured of AWS, a tokenizer's special tokens
# (`eos_token: "</s>"`), the passes of a model.
_PUBLIC = re.compile(
    r"^AWS_(?:DEFAULT_)?(?:REGION|OUTPUT|PAGER|PROFILE)$"
    r"|(?:^|[_.\-])(?:bos|eos|pad|unk|cls|sep|mask|image|audio|video|boi|eoi|boa|eoa|start|end|"
    r"stop|prefix|suffix|middle|special|next|first|last|per)_token$"
    r"|(?:forward|backward|first|second|last|single)_pass$|^PWD$",
    re.IGNORECASE,
)
_HUB = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"})
# A value shorter than this is a word: blotting out `CI_KEY=1` would eat every "1".
_SHORTEST = 6


def is_secret(name: str) -> bool:
    """Whether a variable, field or option of this name is taken to hold a secret."""
    return _SECRET.search(name) is not None and _PUBLIC.search(name) is None


def without_secrets(
    environment: Mapping[str, str], *, hub: bool, keep: Collection[str] = ()
) -> dict[str, str]:
    """What a measured process may know of ``environment``.

    Left out are variables named like secrets and URLs with a password in them, but for a proxy's:
    without that nothing could be fetched.

    Parameters
    ----------
    hub : bool
        Keep what a gated model of the Hugging Face hub is fetched with.
    keep : collection of str
        Names that stay, too.
    """
    return {
        name: value
        for name, value in environment.items()
        if (hub and name in _HUB)
        or name in keep
        or not (is_secret(name) or (_password(value) and not name.lower().endswith("_proxy")))
    }


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values to blot out wherever they appear, longer ones first: one may contain another.

    Passwords within URLs are among them; short values and paths of files are not.
    """
    found = set(filter(None, map(_password, environment.values())))
    found |= {
        value
        for name, value in environment.items()
        if is_secret(name) and not (value.startswith("/") and os.path.exists(value))
    }
    return sorted((v for v in found if len(v) >= _SHORTEST), key=lambda v: (-len(v), v))


def _password(value: str) -> str | None:
    if "://" not in value or "@" not in value:
        return None
    try:
        return urlsplit(value).password
    except ValueError:  # no URL after all
        return None
