"""Finds engines by registered name, and asks the one that a trial names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.engines.port import Engine, Model, Session, Work, require_context
from orchestrator.engines.residency import note_page_cache
from orchestrator.engines.source import context_tokens
from orchestrator.measure import Identity, Recorder, timed
from orchestrator.measure.registry import Registry
from orchestrator.measure.wording import format_name

if TYPE_CHECKING:
    from orchestrator.model import Expectation

ENGINES = Registry(
    "engine",
    Engine,
    "orchestrator.engines",
    {
        "transformers": "orchestrator.engines.transformers.engine:ENGINE",
        "llamacpp": "orchestrator.engines.llamacpp.engine:ENGINE",
        "onnxruntime": "orchestrator.engines.onnxruntime.engine:ENGINE",
        "openvino": "orchestrator.engines.openvino.engine:ENGINE",
        "vllm": "orchestrator.engines.vllm.engine:ENGINE",
        "endpoint": "orchestrator.engines.endpoint.engine:ENGINE",
    },
)


def engine_of(identity: Identity) -> Engine:
    """The engine that ``identity`` names.

    Raises
    ------
    ConfigError
        There is none of this name here.
    """
    return ENGINES.find(str(identity["engine"]["name"]))


def check(identity: Identity, work: Work) -> str | None:
    """None, or one line why this engine cannot do this work; :class:`ConfigError` for nonsense."""
    engine = engine_of(identity)
    asked = format_name(identity["quant"])
    if asked not in engine.formats:
        return f"{engine.name} has no {asked}; it has {', '.join(engine.formats)}"
    if work.depth and not engine.takes_depth:
        return f"{engine.name} cannot fill a cache before it is timed: use task.depth=0"
    if work.served and not engine.serves:
        return (
            f"{engine.name} is no server: use engine=llamacpp, or engine=endpoint for one of yours"
        )
    if reason := engine.check(identity, work):
        return reason
    limit = context_tokens(identity["model"])
    if limit is not None and work.tokens > limit:
        return f"{work.named} = {work.tokens} tokens, more than the model's context of {limit}"
    return None


def prepare(identity: Identity, recorder: Recorder, work: Work) -> Model:
    """The model of ``identity``, with room for ``work`` in its context."""
    model = engine_of(identity).prepare(identity, recorder)
    require_context(model.context_tokens, work)
    return model


def load(model: Model, work: Work, recorder: Recorder) -> Session:
    """Load what was prepared, record ``load_s``, and prove that it is what was asked for.

    Raises
    ------
    InputError
        If the weights do not belong to the configuration.
    Mismatch
        If what was loaded is not what was asked for.
    """
    note_page_cache(model.files, recorder)
    with recorder.phase("load", measured=False), timed(recorder.clock) as span:
        session = model.load(work)
    if model.loaded is None:
        recorder.value("load_s", "s", span.seconds)
    else:
        recorder.absent("load_s", "s", model.loaded)
    session.ready(recorder)
    return session


def is_remote(identity: Identity) -> bool:
    """As :attr:`Engine.remote`, of the trial's engine if it has one."""
    return identity.get("engine") is not None and engine_of(identity).remote


def secrets(identity: Identity) -> tuple[str, ...]:
    """As :attr:`Engine.secrets`."""
    return engine_of(identity).secrets(identity)


def expect(identity: Identity, config: Mapping[str, Any] | None) -> Expectation | None:
    """As :attr:`Engine.expect`."""
    return engine_of(identity).expect(identity, config)


def packages(identity: Identity) -> tuple[str, ...]:
    """As :attr:`Engine.packages`."""
    return engine_of(identity).packages(identity)


def preload(identity: Identity) -> tuple[str, ...]:
    """As :attr:`Engine.preload`, as far as it is installed."""
    return engine_of(identity).preload
