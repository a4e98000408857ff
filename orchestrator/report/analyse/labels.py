"""Names a trial for people: ``nf4 · 512→32``.

Pure text from a trial's axes: the live view, the tables and the MLflow run names say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.measure.wording import format_name
from orchestrator.plan.comparison import varying_axes

if TYPE_CHECKING:
    from orchestrator.plan.plan import Plan

SEPARATOR = " · "
HASH_LENGTH = 12
_LONGEST_VALUE = 28
# Words that tell nothing without the name of their axis.
_VAGUE = frozenset({"none", "auto", "default", "on", "off", "true", "false", "null", "all"})

# What a reader calls an axis; anything else goes by the last part of its override.
_AXIS_NAMES = {
    "task.prompt_tokens": "prompt",
    "task.new_tokens": "new",
    "task.batch_size": "batch",
    "model.id": "model",
    "model.path": "model",
    "model.revision": "revision",
    "device.threads": "threads",
}

#: What an option without a value reads as.
NOTHING = "none"
# What null means on an axis where it is a choice of its own.
_NULL_NAMES = {"device.threads": "auto"}


def short_hash(config_hash: str) -> str:
    """The 12 hex characters of a config hash that people see and type."""
    return config_hash[:HASH_LENGTH]


def axis_name(override: str) -> str:
    """What a reader calls an axis: ``prompt`` for ``task.prompt_tokens``."""
    known = _AXIS_NAMES.get(override)
    return known or override.rsplit(".", 1)[-1].removesuffix("_tokens").replace("_", " ")


def axis_names(overrides: list[str]) -> dict[str, str]:
    """Reader's names of several axes, told apart by their whole override where two would be one."""
    names = {o: axis_name(o) for o in overrides}
    seen = list(names.values())
    return {o: o if seen.count(name) > 1 else name for o, name in names.items()}


def axis_value(value: object, axis: str | None = None) -> str:
    """One value, short: booleans as on/off, nothing by its name, paths by their ends."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value == "":
        return _NULL_NAMES.get(axis or "", NOTHING)
    if isinstance(value, float):
        # Six digits, but never another number, and never two values as one.
        return short if float(short := f"{value:g}") == value else repr(value)
    text = str(value)
    if len(text) <= _LONGEST_VALUE:
        return text
    tail = text.rstrip("/").rsplit("/", 1)[-1]
    return tail if len(tail) <= _LONGEST_VALUE else "…" + tail[-(_LONGEST_VALUE - 1) :]


def telling_axes(plan: Plan) -> list[str]:
    """The varying axes without those that another tells, as an engine its environment."""
    kept: dict[str, list[str]] = {}
    for axis in varying_axes(plan):
        spelled = [repr(trial.axes.get(axis)) for trial in plan.trials]
        # An axis that the trials at hand do not vary cannot repeat another.
        varies = len(set(spelled)) > 1
        others = [*kept.values()]
        if axis == "environment" and kept:
            # What only makes an engine or a format possible is told by these together.
            others.append([repr(values) for values in zip(*kept.values(), strict=True)])
        if not (varies and any(_decides(other, spelled) for other in others)):
            kept[axis] = spelled
    return list(kept)


def _decides(one: list[str], other: list[str]) -> bool:
    """Whether each value of ``one`` goes with a single value of ``other``."""
    return len(set(zip(one, other, strict=True))) == len(set(one))


def labels_of(plan: Plan) -> dict[str, str]:
    """What tells each trial of a plan from the others, by config hash: ``nf4 · 512→32``.

    Choices of a group and other words appear by value alone (``nf4``, ``async``), numbers and
    switches with their axis' name (``batch 4``), prompt and output length as ``prompt→new``. A plan
    without axes is named after its task, model and quantization.
    """
    axes = telling_axes(plan)
    return {t.hash: label_of(t.axes, t.identity, axes) for t in plan.trials}


def label_of(axes: Mapping[str, Any], identity: Mapping[str, Any], order: list[str]) -> str:
    """One of :func:`labels_of`: the trial's axes, its identity, and the axes worth showing."""
    shown = [axis for axis in order if axis in axes and of_use(axis, axes[axis], order)]
    if not shown:
        return plain_label(identity)
    names = axis_names(shown)
    parts: list[str] = []
    lengths = {"task.prompt_tokens", "task.new_tokens"}
    arrow = _arrow(axes, identity) if lengths.intersection(shown) else None
    for axis in shown:
        if arrow is not None and axis in lengths:
            if arrow not in parts:
                parts.append(arrow)
            continue
        parts.append(axis_text(axis, axes[axis], names[axis]))
    return SEPARATOR.join(parts)


def of_use(axis: str, value: object, among: Iterable[str]) -> bool:
    """Whether a trial has a value there: of a closed loop, which ``load`` tells, no rate is."""
    return value is not None or axis.partition(".")[0] not in among


def axis_text(axis: str, value: object, name: str | None = None) -> str:
    """One value on its axis: ``nf4``, ``async``, ``batch 4``, ``compile on``.

    A word that says what it is goes without its axis' name; ``none`` and ``auto`` do not.
    """
    word = isinstance(value, str) and (
        "." not in axis or (value.replace("-", "_").isidentifier() and value not in _VAGUE)
    )
    return axis_value(value) if word else f"{name or axis_name(axis)} {axis_value(value, axis)}"


def plain_label(identity: Mapping[str, Any]) -> str:
    """A name from the configuration itself, for a trial that no axis tells from others."""
    task, engine, model, quant = (
        identity.get(k) or {} for k in ("task", "engine", "model", "quant")
    )
    name = str(task.get("name", "trial"))
    if name == "noop":
        return f"noop {axis_value(task.get('value'))}"
    source = model.get("id") or model.get("path") or model.get("source")
    parts = [name, *(axis_value(p) for p in (engine.get("name"), source, format_name(quant)) if p)]
    return SEPARATOR.join(parts)


def _arrow(axes: Mapping[str, Any], identity: Mapping[str, Any]) -> str | None:
    task = identity.get("task") or {}
    prompt = axes.get("task.prompt_tokens", task.get("prompt_tokens"))
    new = axes.get("task.new_tokens", task.get("new_tokens"))
    return None if prompt is None or new is None else f"{prompt}→{new}"
