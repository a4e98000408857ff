"""What makes a trial itself: its canonical JSON, its hash, and the checks both must pass."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, fields
from functools import lru_cache
from typing import Any

from orchestrator.engines.registry import ENGINES
from orchestrator.errors import ConfigError
from orchestrator.measure.registry import find_task
from orchestrator.plan.messages import translated
from orchestrator.plan.schema import (
    GGUF,
    IDENTITY_GROUPS,
    IDENTITY_KEYS,
    SCHEMA_VERSION,
    WEIGHT_ONLY,
    LoadConfig,
    RootConfig,
    field_problems,
)

# What each model source reads: (must be given, may be given). The rest must stay empty, or two
# configurations that measure the same would hash differently.
MODEL_FIELDS = {
    "packaged": ({"id"}, set()),
    "hub": ({"id"}, {"revision", "trust_remote_code"}),
    "path": ({"path"}, {"trust_remote_code"}),
    "gguf": ({"path"}, set()),
    "random": ({"architecture"}, set()),
}

_PLAIN = (str, int, float, bool, type(None))


def canonical_json(identity: Mapping[str, Any]) -> str:
    """The text that is hashed: sorted keys, no spaces, ASCII, numbers by value (``1.0`` is ``1``).

    Raises
    ------
    ConfigError
        For NaN, infinities and anything that JSON cannot hold.
    """
    tree = _by_value(identity, "")
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def config_hash(identity: Mapping[str, Any]) -> str:
    """SHA-256 of :func:`canonical_json`, 64 lower-case hex digits."""
    return hashlib.sha256(canonical_json(identity).encode("ascii")).hexdigest()


def _by_value(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{value} is not a finite number", where=key)
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _by_value(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_value(v, f"{key}[{i}]") for i, v in enumerate(value)]
    raise ConfigError(f"a {type(value).__name__} cannot be part of a configuration", where=key)


def copied(tree: Any) -> Any:
    """A deep copy of plain JSON-like data, keys as text."""
    if isinstance(tree, _PLAIN):  # first, because most of what a plan copies is
        return tree
    if isinstance(tree, Mapping):
        return {str(key): copied(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [copied(value) for value in tree]
    return tree


def kinds_of(identity: Mapping[str, Any]) -> dict[str, type]:
    """Dataclass of each group of a trial; without those that its task has no use for.

    Raises
    ------
    ConfigError
        A task or an engine that is not here.
    """
    kinds = {"task": find_task(identity["task"]["name"]).config}
    if identity["engine"] is not None:
        kinds["engine"] = ENGINES.find(identity["engine"]["name"]).config
    if identity.get("load") is not None:
        kinds["load"] = LoadConfig
    return {**kinds, **IDENTITY_GROUPS}


def without_added(identity: dict[str, Any]) -> dict[str, Any]:
    """The same tree, without fields at their default that were added after others were recorded.

    Its hash is what it was before there were such fields.
    """
    for name, kind in kinds_of(identity).items():
        for option in _added(kind):
            if identity[name].get(option.name) == option.default:
                del identity[name][option.name]
    return identity


def left_out(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`without_added` left out of it: defaults by dotted name."""
    return {
        f"{name}.{option.name}": option.default
        for name, kind in kinds_of(identity).items()
        for option in _added(kind)
        if option.name not in identity[name]
    }


@lru_cache(maxsize=64)
def _added(kind: type) -> tuple[Field[Any], ...]:
    return tuple(option for option in fields(kind) if option.metadata.get("added"))


def check_values(
    identity: Mapping[str, Any],
    *,
    skip: Sequence[str] = (),
    only: str | None = None,
) -> None:
    """Raise :class:`ConfigError` for a value that its field rules out.

    Parameters
    ----------
    skip : sequence of str
        Keys that are not looked at.
    only : str, optional
        The one key, and those inside it, that are.
    """
    found = [
        problem
        for name, kind in kinds_of(identity).items()
        for problem in field_problems(kind, identity[name], name)
    ]
    for key, problem in (*found, *field_problems(RootConfig, {"seed": identity["seed"]}, "")):
        if key not in skip and (only is None or key == only or key.startswith(f"{only}.")):
            raise ConfigError(problem, where=key)


def check_together(identity: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for values that are fine alone and make no sense together."""
    model, quant, protocol = identity["model"], identity["quant"], identity["protocol"]
    source = model["source"]
    required, optional = MODEL_FIELDS[source]
    for name in sorted(required):
        if not model[name]:
            raise ConfigError(
                f"is not given, and model.source={source} needs it",
                where=f"model.{name}",
                fix=_model_example(source),
            )
    for name, value in model.items():
        if value and name != "source" and name not in required | optional:
            raise ConfigError(
                f"has no effect on model.source={source}",
                where=f"model.{name}",
                fix="Leave it out, or choose another model=",
            )
    if source == "hub":
        _check_hub_id(model["id"])
    if (quant["dtype"] is None) != (quant["scheme"] in (*GGUF, "source")):
        raise ConfigError(
            f"{'must be given' if quant['dtype'] is None else 'has no effect'} on "
            f"quant.scheme={quant['scheme']}",
            where="quant.dtype",
            fix="Choose a format by quant=, for example quant=bf16 or quant=q8_0",
        )
    grouped = quant["group_size"] is not None
    if quant["scheme"] == "int4wo" if not grouped else quant["scheme"] not in WEIGHT_ONLY:
        raise ConfigError(
            f"{'has no effect' if grouped else 'must be given'} on quant.scheme={quant['scheme']}",
            where="quant.group_size",
            fix=f"It belongs to {', '.join(WEIGHT_ONLY)}",
        )
    if quant["double_quant"] and quant["scheme"] not in ("nf4", "fp4"):
        raise ConfigError(
            f"has no effect on quant.scheme={quant['scheme']}",
            where="quant.double_quant",
            fix="It belongs to nf4 and fp4",
        )
    if protocol["max_repetitions"] < protocol["min_repetitions"]:
        raise ConfigError(
            f"{protocol['max_repetitions']} is less than protocol.min_repetitions="
            f"{protocol['min_repetitions']}",
            where="protocol.max_repetitions",
        )


@lru_cache(maxsize=256)
def _check_hub_id(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"{name!r} is no id of the hub",
            where="model.id",
            fix="Write OWNER/NAME; for a directory model=path",
        ) from error


def _model_example(source: str) -> str:
    return {
        "hub": "Write model=hub model.id=OWNER/NAME",
        "path": "Write model=path model.path=DIRECTORY",
        "gguf": "Write model=gguf model.path=FILE.gguf",
        "random": "Write model=random, or give model.architecture a model_type and sizes",
    }.get(source, "Write model=smollm2_135m")


def rebuild(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Validate a stored identity against the typed schema of today and return its canonical tree.

    Raises
    ------
    ConfigError
        Another schema version, an unknown task, a field that is unknown or missing today, a value
        of the wrong type. A hash that could only be reached by guessing is never made up.
    """
    version = identity.get("schema")
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"identity of schema version {version!r}, this program writes {SCHEMA_VERSION}",
            where="schema",
            fix="Use the version of the program that recorded it",
        )
    _same_fields("", {"schema", *IDENTITY_KEYS}, identity)
    task = identity["task"]
    if not isinstance(task, Mapping) or not isinstance(task.get("name"), str):
        raise ConfigError("an identity without a task name", where="task")
    known = find_task(task["name"])
    for group, name, used in (
        ("engine", "name", known.on_engine),
        ("load", "kind", known.under_load),
    ):
        chosen = identity[group]
        named = isinstance(chosen, Mapping) and isinstance(chosen.get(name), str)
        if named != used or not (named or chosen is None):
            raise ConfigError("is not what this task takes", where=group)
    tree: dict[str, Any] = {"schema": SCHEMA_VERSION, "engine": None, "load": None}
    for name, kind in kinds_of(identity).items():
        tree[name] = _typed(kind, name, identity[name])
    tree["environment"] = _environment(identity["environment"])
    seed = identity["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"{seed!r} is not an int", where="seed")
    tree["seed"] = seed
    check_values(tree)
    check_together(tree)
    if tree["device"]["kind"] == "auto":
        raise ConfigError("an identity never says auto", where="device.kind")
    canonical_json(tree)
    return without_added(tree)


def _environment(stored: Any) -> dict[str, Any] | None:
    if stored is None:
        return None
    _same_fields("environment", {"python", "packages"}, stored)
    packages = stored["packages"]
    if not isinstance(packages, Mapping) or not packages:
        raise ConfigError("has no packages", where="environment")
    return {"python": str(stored["python"]), "packages": {k: str(v) for k, v in packages.items()}}


def _same_fields(where: str, known: set[str], got: Any, left_out: Collection[str] = ()) -> None:
    if not isinstance(got, Mapping):
        raise ConfigError(f"expected fields, got {got!r}", where=where or None)
    prefix = f"{where}." if where else ""
    for name in got:
        if name not in known:
            raise ConfigError(
                f"unknown field {prefix}{name}",
                where="identity",
                fix="This version does not have that option, and cannot run the trial exactly",
            )
    for name in sorted(known - set(got) - set(left_out)):
        raise ConfigError(
            f"has no field {prefix}{name}",
            where="identity",
            fix="It was recorded before that option existed, and cannot be rebuilt exactly",
        )


def _typed(kind: type, name: str, values: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    _same_fields(name, {f.name for f in fields(kind)}, values, {f.name for f in _added(kind)})
    with translated(name):
        # Stored text such as "${...}" is text: an identity must never be interpolated again.
        node = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.create(_escaped(values)))
        tree = OmegaConf.to_container(node, resolve=True, throw_on_missing=True, enum_to_str=True)
    assert isinstance(tree, dict)
    return copied(tree)  # type: ignore[no-any-return]


def _escaped(tree: Any) -> Any:
    if isinstance(tree, str):
        return tree.replace("${", "\\${")
    if isinstance(tree, Mapping):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    return tree
