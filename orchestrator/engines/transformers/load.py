"""From ``identity`` to a model ready on its device, timed and proven to be what was asked for.

::

    prepare   threads, imports, download or conversion, digests      not part of load_s
    load      read, quantize, move to the device                     load_s
              engaged check
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engines.digest import digest_files
from orchestrator.engines.gguf_files import gguf_files
from orchestrator.engines.inspection import inspect_shards, tensor_types
from orchestrator.engines.residency import note_page_cache
from orchestrator.engines.source import (
    context_of,
    directory_problem,
    find_problem,
    model_path,
    packaged_file,
    weight_files,
)
from orchestrator.engines.transformers import compressed, hub
from orchestrator.engines.transformers import random_weights as architecture
from orchestrator.engines.transformers.attention_choice import implementation, refuse_attention
from orchestrator.engines.transformers.convert import converted
from orchestrator.engines.transformers.engaged import check_setting, check_weights
from orchestrator.engines.transformers.indexed import readable
from orchestrator.engines.transformers.model_types import (
    packing_problem,
    said_quantized,
    type_problem,
)
from orchestrator.engines.transformers.quantization import (
    QUANTIZED,
    WEIGHT_ONLY,
    import_quantizer,
    quantize_linears,
    quantize_weight_only,
    refuse_unpackable,
    transformers_config,
)
from orchestrator.errors import one_line
from orchestrator.host.cpu import usable_cores
from orchestrator.measure import Identity, Infeasible, InputError, Recorder, timed

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# Imported by the fork server, so that no attempt pays for them. Never bitsandbytes.
PRELOAD = (
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)


@dataclass(frozen=True)
class Prepared:
    """A model found, checked and fetched, but not loaded.

    Attributes
    ----------
    directory : Path or None
        Where ``config.json`` and the safetensors are; None for random weights.
    weights_digest : str
        SHA-256 over the content of the source's files (of the GGUF, not of its conversion).
    """

    config: PretrainedConfig
    directory: Path | None
    files: tuple[Path, ...]
    weights_digest: str

    @property
    def context_tokens(self) -> int | None:
        """Longest sequence the configuration allows; None where it is silent."""
        return context_of(self.config.to_dict())

    def quant_in_memory(self, quant: Mapping[str, Any]) -> Mapping[str, Any]:
        """``identity["quant"]`` as the weights lie in memory: those of ``source`` unpacked."""
        return compressed.quant_in_memory(quant, self.config.to_dict())

    def require_context(
        self, tokens: int, named: str, *, where: str = "task", fix: str = "Shorten it"
    ) -> None:
        """Raise :class:`InputError` where ``tokens`` are more than the model's context.

        Planning asks the same of models whose configuration is at hand then; of others it is known
        only now.
        """
        limit = self.context_tokens
        if limit is not None and tokens > limit:
            raise InputError(
                f"{named} = {tokens}, more than the model's context of {limit}",
                where=where,
                fix=fix,
            )


def prepare(identity: Identity, recorder: Recorder) -> Prepared:
    """Do all that comes before loading: threads, imports, download, conversion, digest.

    Raises
    ------
    InputError
        If the model cannot be had or its files are damaged.
    Infeasible
        If the device, bitsandbytes or torchao is missing here.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils.logging import disable_progress_bar

    model = identity["model"]
    with recorder.phase("prepare", measured=False):
        disable_progress_bar()
        use_device(identity["device"])
        import_quantizer(identity["quant"])
        if problem := find_problem(model):
            raise problem.as_input_error()
        prepared = _prepare(identity, recorder)
        # The model's own code is imported on first use: that is not loading weights.
        if type(prepared.config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            MODEL_FOR_CAUSAL_LM_MAPPING[type(prepared.config)]
    recorder.fact("weights_digest", prepared.weights_digest)
    recorder.fact("model_type", prepared.config.model_type)
    # As plain data: a supervisor without transformers predicts from it.
    recorder.fact("model_config", json.loads(prepared.config.to_json_string(use_diff=False)))
    return prepared


def load(
    prepared: Prepared, identity: Identity, recorder: Recorder, *, attention: str = "sdpa"
) -> PreTrainedModel:
    """Load what was prepared, record ``load_s``, and prove that it is what was asked for.

    Parameters
    ----------
    attention : str
        ``sdpa``, ``eager``, ``flash_attention_2`` or ``flex_attention``.

    Raises
    ------
    InputError
        If the weights do not belong to the configuration.
    Mismatch
        If what was loaded is not what was asked for.
    """
    note_page_cache(prepared.files, recorder)
    with recorder.phase("load", measured=False), timed(recorder.clock) as span:
        model = load_unmeasured(
            prepared,
            identity["quant"],
            identity["device"],
            identity["seed"],
            attention=attention,
            trust_remote_code=identity["model"]["trust_remote_code"],
        )
    recorder.value("load_s", "s", span.seconds)
    prove_loaded(model, prepared, identity, recorder, attention)
    return model


def prove_loaded(
    model: PreTrainedModel,
    prepared: Prepared,
    identity: Identity,
    recorder: Recorder,
    attention: str,
) -> None:
    """Prove that ``model`` is what was asked for; :class:`Mismatch` where it is not."""
    release_free_memory()
    if prepared.files:
        # Whatever was left over or left out has raised by now.
        asked, got = "all tensors used, all parameters loaded", _tensor_count(prepared.files)
        recorder.engaged("checkpoint", asked, f"{got} tensors, none left over or out", ok=True)
    if identity["quant"]["scheme"] == "source":
        _note_unpacked(prepared, identity["quant"], recorder)
    check_weights(model, prepared.quant_in_memory(identity["quant"]), recorder)
    threads = thread_count(identity["device"])
    check_setting(model, attention, identity["device"], threads, recorder)


def _note_unpacked(prepared: Prepared, quant: Mapping[str, Any], recorder: Recorder) -> None:
    """Say what the file holds, and that it is something else that is measured."""
    found = compressed.layers(prepared.config.to_dict())
    packed, matrices = compressed.packed_matrices(prepared.files)
    dtype = prepared.quant_in_memory(quant)["dtype"]
    recorder.engaged(
        "file format",
        "packed by compressed-tensors, unpacked when loaded",
        f"{found} in {packed} of {matrices} matrices of the file, {dtype} in memory",
        ok=True,
    )
    recorder.fact(compressed.LAYERS_FACT, f"{found} in the file, unpacked to {dtype}")


@contextmanager
def runs(prepared: Prepared) -> Iterator[None]:
    """Say in a line that random sizes do not fit together, where the first call finds out."""
    import torch

    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        if prepared.directory is not None or isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"a {prepared.config.model_type} of these sizes cannot run: {one_line(error)}",
            where="model.architecture",
            fix="Name the sizes that are left open, head_dim for example",
        ) from error


def load_unmeasured(
    prepared: Prepared,
    quant: Mapping[str, Any],
    device: Mapping[str, Any],
    seed: int,
    *,
    attention: str = "sdpa",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model in evaluation mode, its weights in memory on the device, nothing recorded."""
    target = torch_device(device)
    if prepared.directory is None:
        model = architecture.build(prepared.config, seed, quant["dtype"], attention)
        if quant["scheme"] in QUANTIZED:
            quantize_linears(model, quant, target)
        model = model.to(target)
    else:
        model = _read(prepared, quant, target, attention, trust_remote_code)
        if target.type == "cpu":
            _bring_into_memory(model, prepared.files)
    if quant["scheme"] in WEIGHT_ONLY:
        quantize_weight_only(model, quant)
    refuse_unpackable(model, quant)
    # Gradients stay allowed, as transformers loads them: of a weight without, the product with the
    # last position of a longer prompt copies the weight first, once for each sequence.
    return model.eval()


def torch_device(device: Mapping[str, Any]) -> torch.device:
    """What torch calls the device of ``identity["device"]``."""
    import torch

    return torch.device("cuda", 0) if device["kind"] == "cuda" else torch.device("cpu")


def use_device(device: Mapping[str, Any]) -> torch.device:
    """The device, there and with its threads set; :class:`Infeasible` where torch sees none."""
    import torch

    if device["kind"] == "cuda" and not torch.cuda.is_available():
        raise Infeasible("torch sees no CUDA device here", where="device=cuda")
    torch.set_num_threads(thread_count(device))
    return torch_device(device)


def thread_count(device: Mapping[str, Any]) -> int:
    """Intra-op threads: as configured, else as many as the cores this process may run on."""
    return int(device["threads"] or len(usable_cores()))


def release_free_memory() -> None:
    """Give freed heap back to the system, so that what is held is what is used."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def _prepare(identity: Identity, recorder: Recorder) -> Prepared:
    model = identity["model"]
    source = model["source"]
    if source == "random":
        config = architecture.configuration(model["architecture"])
        digest = architecture.digest(model["architecture"], identity["seed"])
        return Prepared(config, None, (), digest)
    if source in ("packaged", "gguf"):
        gguf = packaged_file() if source == "packaged" else model_path(model)
        assert gguf is not None  # find_problem has looked
        digest = digest_files(gguf_files(gguf))
        directory = converted(gguf, digest, recorder)
        files = weight_files(directory)
    else:
        trusted = bool(model["trust_remote_code"])
        directory = (
            model_path(model)
            if source == "path"
            else hub.fetch(model["id"], model["revision"], code=trusted, commit=model.get("commit"))
        )
        if problem := directory_problem(directory):
            raise problem.as_input_error()
        files = weight_files(directory)
        inspect_shards(files, packed=bool(said_quantized(_config_file(directory))))
        digest = digest_files(files)
        directory = readable(directory, files, digest)
    _refuse_other_models(directory, identity)
    config = _configuration(directory, bool(model["trust_remote_code"]))
    return Prepared(config, directory, tuple(files), digest)


def _refuse_other_models(directory: Path, identity: Identity) -> None:
    """What planning refuses where it has the configuration; a hub model's is there only now."""
    config = _config_file(directory)
    trusted = bool(identity["model"]["trust_remote_code"])
    if problem := type_problem(config, str(directory), own_code=trusted):
        raise problem.as_input_error()
    if reason := packing_problem(config, identity["quant"]):
        raise Infeasible(reason, where="quant")


def _config_file(directory: Path) -> dict[str, Any]:
    """The plain JSON object that ``directory_problem`` has looked for."""
    found: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return found


def _configuration(directory: Path, trust_remote_code: bool) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # its validators raise types of their own
        raise InputError(
            f"this configuration cannot be used: {one_line(error)}",
            where=str(directory / "config.json"),
        ) from error


def _read(
    prepared: Prepared,
    quant: Mapping[str, Any],
    target: torch.device,
    attention: str,
    trust_remote_code: bool,
) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    directory = prepared.directory
    assert directory is not None
    quantization = transformers_config(quant)
    device_map: Any = None
    if target.type == "cuda":
        device_map = {"": target.index} if torch.cuda.device_count() == 1 else "auto"
    elif quant["scheme"] in QUANTIZED:
        device_map = {"": "cpu"}
    try:
        model, notes = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, prepared.quant_in_memory(quant)["dtype"]),
            attn_implementation=implementation(prepared.config, attention),
            quantization_config=quantization,
            device_map=device_map,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below, instead of in a table and a riddle
            # What a call gives back is asked for here, not by whoever saved the model.
            return_dict=True,
            output_hidden_states=False,
            output_attentions=False,
        )
    except ImportError as error:
        raise Infeasible(one_line(error), where=str(directory)) from error
    except Exception as error:  # validators and code of models raise types of their own
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise
        refuse_attention(error, attention, str(directory))
        raise InputError(
            f"the model cannot be loaded: {one_line(error)}", where=str(directory)
        ) from error
    missing = sorted(notes.get("missing_keys") or ())
    mismatched = sorted(str(entry[0]) for entry in notes.get("mismatched_keys") or ())
    unused = sorted(notes.get("unexpected_keys") or ())
    # transformers fills the first two with random numbers, leaves the third out, and goes on. What
    # it lists itself as tied, computed or not of this model is in none of them.
    for names, what in (
        (missing, "the weights lack"),
        (mismatched, "the weights have another shape in"),
        (unused, "the model has no place for"),
    ):
        if names:
            raise InputError(
                f"{what} {len(names)} tensors, for example {names[0]}",
                where=str(directory),
                fix="The files must belong to config.json",
            )
    _refuse_untied(model, directory)
    return model


def _refuse_untied(model: PreTrainedModel, directory: Path) -> None:
    """transformers keeps both where they differ, other engines the embedding: two models."""
    import torch

    text: Any = model.config.get_text_config(decoder=True)
    tied = getattr(model, "_tied_weights_keys", None) and getattr(text, "tie_word_embeddings", 0)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if not tied or head is None or table is None or head.weight is table.weight:
        return
    one, other = head.weight, table.weight
    if one.device == other.device and one.shape == other.shape and not torch.equal(one, other):
        raise InputError(
            "tie_word_embeddings says that the output head is the embedding, and the weights have "
            "another head",
            where=str(directory),
            fix="Set it to false in config.json, or take the head's weights out",
        )


def _tensor_count(files: tuple[Path, ...]) -> int:
    return len({name for file in files for name in tensor_types(file)})


def _bring_into_memory(model: PreTrainedModel, files: tuple[Path, ...]) -> None:
    """Copy weights that are still a mapping of their file into memory of this process.

    Without it the first call would read the disk, and the load would seem to take no time.
    """
    names = {str(file.resolve()) for file in files}
    mapped: list[tuple[int, int]] = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in names:
            begin, _, end = fields[0].partition("-")
            mapped.append((int(begin, 16), int(end, 16)))
    for parameter in model.parameters():
        address = parameter.data_ptr()
        if any(begin <= address < end for begin, end in mapped):
            parameter.data = parameter.data.clone()
