"""Says what pydantic finds wrong with a value as one of our errors: where, what, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.errors import ConfigError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

# pydantic's words, which tell of Python's types, as ours.
_WORDS = {
    "missing": "must be given",
    "extra_forbidden": "unknown key",
    "union_tag_not_found": "{discriminator} must be given",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}, not {tag!r}",
    "too_short": "must have at least {min_length}",
    "model_type": "must be a mapping, not {input!r}",
    "model_attributes_type": "must be a mapping, not {input!r}",
    "dict_type": "must be a mapping, not {input!r}",
    "tuple_type": "must be a list, not {input!r}",
    "string_type": "must be text, not {input!r}",
}


def refusal(
    error: ValidationError, where: str, models: Mapping[str, type[BaseModel]] | None = None
) -> ConfigError:
    """The first mistake in ``error``.

    Parameters
    ----------
    where : str
        The file or group that was read; empty where the keys are whole names.
    models : mapping of str to model, optional
        Whose fields an unknown key may have meant, by a part of its path; ``""`` is the whole.
    """
    found = error.errors(include_url=False)[0]
    kind, path = found["type"], found["loc"]
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    where = ": ".join(filter(None, (where, place)))
    if kind == "extra_forbidden" and models is not None:
        owner = next((models[str(p)] for p in reversed(path[:-1]) if str(p) in models), models[""])
        return ConfigError(
            "unknown key", where=where, fix=nearest(str(path[-1]), owner.model_fields)
        )
    if kind in _WORDS:
        what = _WORDS[kind].format(input=found["input"], **found.get("ctx", {}))
    else:
        what = found["msg"].removeprefix("Value error, ").replace("Input should", "must")
        what += f", not {found['input']!r}" if what.startswith("must") else ""
    return ConfigError(what, where=where or None)
