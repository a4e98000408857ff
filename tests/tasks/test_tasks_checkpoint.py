"""Model directories that say two things, or one that is not their files': refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.engines import transformers as loading
from orchestrator.engines.transformers.feasible import check_model
from orchestrator.errors import ConfigError
from orchestrator.measure import InputError

Identity = Callable[..., dict[str, Any]]
Tensors = dict[str, torch.Tensor]


def asked_for(identity: Identity, directory: Path) -> dict[str, Any]:
    return identity(model={"source": "path", "path": str(directory)})


def load(asked: dict[str, Any], recorder: Any) -> Any:
    return loading.load(loading.prepare(asked, recorder[0]), asked, recorder[0])


def configure(directory: Path, name: str = "config.json", **values: Any) -> None:
    file = directory / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def other_head(directory: Path, tensors: Tensors) -> None:
    configure(directory, tie_word_embeddings=True)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


def integers(directory: Path, tensors: Tensors) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = (tensors[name] * 100).to(torch.int8)


def twice(directory: Path, tensors: Tensors) -> None:
    """In two files, of which the index names the first; the loader takes the second."""
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    again = tensors["model.norm.weight"] + 1
    save_file({"model.norm.weight": again}, directory / files[1], {"format": "pt"})
    places = {"weight_map": dict.fromkeys(tensors, files[0]) | {"nothing": files[1]}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(places))
    save_file(tensors, directory / files[0], {"format": "pt"})
    tensors.clear()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (other_head, "tie_word_embeddings says that the output head is the embedding"),
        (integers, r"q_proj\.weight is of integers \(I8\), and config\.json has no"),
        (twice, r"the tensor model\.norm\.weight is in model-00001-of-00002\.safetensors too"),
    ],
)
def test_weights_that_transformers_takes_for_others_are_refused(
    identity: Identity,
    recorder: Any,
    saved_model: Path,
    spoil: Callable[[Path, Tensors], None],
    says: str,
) -> None:
    file = saved_model / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    spoil(saved_model, tensors)
    if tensors:
        save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=says) as refused:
        load(asked_for(identity, saved_model), recorder)
    assert "\n" not in str(refused.value)


def test_a_head_that_is_the_embedding_may_be_in_the_file(
    identity: Identity, recorder: Any, saved_model: Path
) -> None:
    configure(saved_model, tie_word_embeddings=True)
    tensors = load_file(saved_model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, saved_model / "model.safetensors", {"format": "pt"})
    model = load(asked_for(identity, saved_model), recorder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        # Where peft is installed, transformers would load what it names into the model.
        ("adapter_config.json", "{}", "an adapter"),
        ("config.json", "[]", "config.json cannot be read: it is no JSON object"),
        ("config.json", "{", "config.json cannot be read: Expecting"),
        ("config.json", "\ufeff{}", "config.json cannot be read: Unexpected UTF-8 BOM"),
    ],
)
def test_it_is_refused_while_planning(
    identity: Identity, saved_model: Path, name: str, content: str, says: str
) -> None:
    (saved_model / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as refused:
        check_model(asked_for(identity, saved_model))
    assert "\n" not in str(refused.value)


def test_code_of_another_repository_is_refused(identity: Identity, saved_model: Path) -> None:
    """It would be fetched in its newest version, which no condition knows."""
    configure(saved_model, auto_map={"AutoModelForCausalLM": "some/one--modeling.Model"})
    asked = asked_for(identity, saved_model)
    assert check_model(asked) is None, "it is not run, so it does not matter"
    asked["model"]["trust_remote_code"] = True
    with pytest.raises(ConfigError, match="code is in another repository, some/one"):
        check_model(asked)
    configure(saved_model, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert check_model(asked) is None


def test_what_a_call_gives_back_is_not_the_files_to_say(
    identity: Identity, recorder: Any, saved_model: Path
) -> None:
    configure(saved_model, return_dict=False, output_hidden_states=True, output_attentions=True)
    model = load(asked_for(identity, saved_model), recorder)
    output = model(input_ids=torch.arange(4)[None])
    assert output.hidden_states is None
    assert output.attentions is None


def test_a_file_that_transformers_stumbles_over_is_one_line(
    identity: Identity, recorder: Any, saved_model: Path
) -> None:
    (saved_model / "generation_config.json").write_text("[]")
    with pytest.raises(InputError, match="the model cannot be loaded: ") as refused:
        load(asked_for(identity, saved_model), recorder)
    assert "\n" not in str(refused.value)
