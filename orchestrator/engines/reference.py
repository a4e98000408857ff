"""What the reference says of a text: the same weights in float32, kept so that it is computed once.

Every engine and format is held against it, so their distances compare. A window of its
log-probabilities is held as 16-bit codes between each row's lowest and highest value: two bytes
each instead of four. For a spread of 40 one step is 0.0006; the divergence that this rounding
causes is of the order of step squared / 24, 1.5e-8 nats a token, four orders below what rounding
weights to bfloat16 causes. The reference's own choice (top 1) is stored exactly.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.engines import registry
from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.content import content_of
from orchestrator.engines.digest import digest_json
from orchestrator.engines.port import NextLogprobs, Session, Work
from orchestrator.engines.separate import exits_for_a_full_disk, own_version, run_module
from orchestrator.engines.text_windows import Windows
from orchestrator.measure import HostClock, Identity, Infeasible, InputError, OutOfMemory, Recorder

REFERENCE_VERSION = 2
_ENGINE = "transformers"
_QUANT = {"scheme": "none", "dtype": "float32", "double_quant": False, "group_size": None}
_STEPS = 65535
# Some models give padded vocabulary entries minus infinity; this far down nothing has any weight.
_LOWEST = 200.0


def reference_identity(identity: Identity) -> dict[str, Any]:
    """The trial that ``identity`` is held against."""
    options = asdict(registry.ENGINES.find(_ENGINE).config())
    # Some models have no other attention than eager.
    if identity["engine"].get("attention") == "eager":
        options["attention"] = "eager"
    asked = {**identity, "engine": options, "quant": dict(_QUANT), "environment": None}
    if identity["engine"]["name"] == _ENGINE and identity["quant"]["scheme"] == "source":
        # What unpacks the file is in the trial's own environment.
        own = {"quant": {**_QUANT, "scheme": "source"}, "environment": identity["environment"]}
        return {**asked, **own}
    return asked


def is_reference(identity: Identity) -> bool:
    """Whether a trial is itself what others are held against."""
    named = identity["engine"]["name"] == _ENGINE and identity["environment"] is None
    return named and all(identity["quant"].get(key) == value for key, value in _QUANT.items())


class Reference:
    """The reference's predictions of a text, a file for each window."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __iter__(self) -> Iterator[NextLogprobs]:
        for file in sorted(self._directory.iterdir()):
            yield self._decoded(file)

    @staticmethod
    def _decoded(file: Path) -> NextLogprobs:
        import numpy as np

        with np.load(file, allow_pickle=False) as stored:
            codes = stored["codes"].astype(np.float32)
            codes *= stored["scale"][:, None]
            codes += stored["low"][:, None]
            # Rounding moved their sum from 1, which a divergence would see in the first order.
            codes -= np.log(np.exp(codes).sum(axis=-1, keepdims=True, dtype=np.float64))
            return NextLogprobs(stored["targets"], stored["top1"], codes)


def reference_for(
    identity: Identity, windows: Windows, recorder: Recorder, own: Session | None = None
) -> Reference | str:
    """The reference of this model for these windows, or a line why there is none.

    Computed in a phase ``reference`` where the cache does not have it.

    Parameters
    ----------
    own : Session, optional
        The session that is measured, where :func:`is_reference`.
    """
    here = identity["environment"] == reference_identity(identity)["environment"]
    key = digest_json(
        {
            "version": REFERENCE_VERSION,
            # Which may compute another model of the same files than the one before it.
            _ENGINE: version(_ENGINE) if here else own_version(_ENGINE),
            # Not of the weights alone: another rms_norm_eps is another model.
            "model": content_of(identity["model"]) or identity["model"]["architecture"],
            "seed": identity["seed"] if identity["model"]["source"] == "random" else None,
            "windows": windows.digest,
        }
    )

    def build(directory: Path) -> None:
        if own is not None:
            _write_all(directory, own, windows)
        elif here:
            session = _loaded(identity, windows, recorder)
            try:
                _write_all(directory, session, windows)
            finally:
                session.close()
        else:  # an environment without it, or with another than the reference of other engines
            request = directory.with_name("request.json")
            request.write_text(json.dumps({"identity": identity, "windows": asdict(windows)}))
            run_module(
                "orchestrator.engines.reference",
                request,
                directory,
                failed="the float32 reference failed",
                where="quality reference",
                fix="Its log says why",
            )

    making = recorder.phase("reference", measured=False)
    try:
        return Reference(publish(cache_root() / "references" / key[:32], build, making=making))
    except OutOfMemory:
        return "the float32 reference does not fit into the device's memory"
    except (InputError, Infeasible) as error:
        return f"no float32 reference of these weights: {error}"


def _write_all(directory: Path, session: Session, windows: Windows) -> None:
    directory.mkdir()
    for index, (ids, targets) in enumerate(windows):
        _write(directory / f"{index:06d}.npz", session.next_logprobs(ids, targets))


def _loaded(identity: Identity, windows: Windows, recorder: Recorder) -> Session:
    asked = reference_identity(identity)
    work = Work(tokens=windows.tokens)
    muted = Recorder(lambda event: None, recorder.clock, recorder.directory)
    return registry.prepare(asked, muted, work).load(work)


def _write(file: Path, found: NextLogprobs) -> None:
    import numpy as np

    high = found.logprobs.max(axis=-1)
    if not np.isfinite(high).all():
        raise InputError(
            "the float32 model itself gives logits that are not finite", where="quality reference"
        )
    clipped = np.maximum(found.logprobs, (high - _LOWEST)[:, None])
    low = clipped.min(axis=-1)
    scale = np.maximum((high - low) / _STEPS, np.finfo(np.float32).tiny)
    codes = np.rint((clipped - low[:, None]) / scale[:, None]).astype(np.uint16)
    with file.open("wb") as stream:
        np.savez(
            stream,
            codes=codes,
            scale=scale,
            low=low,
            top1=found.top1,
            targets=found.targets,
        )


def main(request: Path, directory: Path) -> None:
    """What :func:`reference_for` asks of a process that has transformers."""
    asked = json.loads(request.read_text())
    windows = Windows(**{name: _tuples(value) for name, value in asked["windows"].items()})
    recorder = Recorder(lambda event: None, HostClock(), directory.parent)
    _write_all(directory, _loaded(asked["identity"], windows, recorder), windows)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    exits_for_a_full_disk(main, Path(sys.argv[1]), Path(sys.argv[2]))
