"""What formats are held against: the same weights in BF16, asked once for a text and kept."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.digest import digest_text
from orchestrator.engines.llamacpp import formats
from orchestrator.engines.llamacpp.quality import TOP, Predictions, predict
from orchestrator.engines.llamacpp.server import LlamaServer, Setting
from orchestrator.engines.text_windows import Windows
from orchestrator.measure import InputError, Recorder

# Its cache of keys and values is kept plain, whatever is measured.
_PLAIN = "f16"


def is_reference(format_name: str, setting: Setting) -> bool:
    """Whether what is measured is itself what formats are held against."""
    plain = setting.cache_type_k == setting.cache_type_v == _PLAIN
    return plain and format_name == formats.REFERENCE


def reference_for(
    own: Predictions | None,
    setting: Setting,
    source: Path,
    digest: str,
    windows: Windows,
    vocabulary: int,
    recorder: Recorder,
) -> Predictions | str:
    """The reference's predictions of a text, made in a phase ``reference`` if the cache has none.

    Parameters
    ----------
    own : Predictions or None
        What was measured, where :func:`is_reference`: it is kept for other formats, and compared
        with itself, for the noise between two runs is not its error.
    setting : Setting
        Of the server that was measured, which must be closed: both may not fit.
    source : Path
        The file that the format was made from, ``digest`` its content.

    Returns
    -------
    Predictions or str
        Or one line why there is none.
    """

    def build(file: Path) -> None:
        if own is not None:
            own.save(file)
            return
        made = formats.in_format(source, digest, formats.REFERENCE)
        server = LlamaServer(replace(setting, file=made, cache_type_k=_PLAIN, cache_type_v=_PLAIN))
        try:
            predict(server, windows, vocabulary).save(file)
        finally:
            server.close()

    key = digest_text(f"{digest} {windows.digest} {TOP} {version('xllamacpp')}")
    try:
        making = recorder.phase("reference", measured=False)
        kept = publish(cache_root() / "references" / f"{key[:32]}.npz", build, making=making)
    except InputError as error:  # a type that cannot be dequantized, or no room for the file
        return f"no {formats.REFERENCE} of these weights: {error}"
    return own if own is not None else Predictions.load(kept)
