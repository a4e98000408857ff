"""Bad input: one line that says what, where and what to type instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.errors import ConfigError
from orchestrator.plan.repository import search_path

BASE = "task=noop model=random_tiny"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("quantt=nf4", ["quantt", "Did you mean quant?"]),
        ("quant=nf5", ["no quant 'nf5'", "Did you mean nf4?"]),
        ("quant=bf16,nf5", ["no quant 'nf5'", "Did you mean nf4?"]),
        ("task=infrence", ["no task 'infrence'", "Did you mean inference?"]),
        ("+sweep=qaunt", ["no sweep 'qaunt'", "Did you mean quant"]),
        ("task.valu=3", ["task.valu", "Did you mean task.value"]),
        ("task.valu=3,4", ["task.valu", "Did you mean task.value"]),
        ("+task.valu=3", ["task.valu", "Did you mean task.value"]),
        ("trackin.root=x", ["trackin.root", "Did you mean tracking"]),
        ("task.value.x=3", ["task.value is a single value"]),
        ("model.architecture.hidden_siz=3", ["hidden_siz", "Did you mean"]),
        ("model=smollm2_135m model.architecture.x=3", ["model.architecture is empty"]),
        ("task.value=x", ["task.value: 'x' is not an int"]),
        ("task.value=1,x", ["task.value: 'x' is not an int"]),
        ("task.value=1.5", ["'1.5' is not an int"]),
        ("task.value=true", ["'true' is not an int"]),
        ("task.value=null", ["'null' is not an int"]),
        ("task.sleep_s=nan", ["task.sleep_s", "not a finite number"]),
        ("task.sleep_s=1,inf", ["task.sleep_s", "not a finite number"]),
        ("+model.architecture.x=nan", ["model.architecture.x", "not a finite number"]),
        ("force=maybe", ["force: 'maybe' is not a bool"]),
        ("device.threads=two", ["'two' is not an int or null"]),
        ("device.threads=0", ["device.threads: 0 is less than 1"]),
        ("device.threads=2,0", ["device.threads: 0 is less than 1"]),
        ("seed=-1", ["seed: -1 is less than 0"]),
        ("seed=1,-1", ["seed: -1 is less than 0"]),
        ("repeats=0", ["repeats: 0 is less than 1"]),
        ("repeats=1000000000000", ["repeats: 1000000000000 is more than 100000"]),
        ("seed=99999999999999999999", ["seed: 99999999999999999999 is more than 9.22337e+18"]),
        ("isolate.start=thread", ["isolate.start", "fork, spawn"]),
        ("quant.scheme=nf5", ["quant.scheme: 'nf5' is not one of", "nf4"]),
        ("quant.scheme=nf4,nf5", ["quant.scheme: 'nf5' is not one of", "nf4"]),
        ("quant=bf16 quant.double_quant=true", ["quant.double_quant", "no effect"]),
        ("quant=bf16 quant.group_size=32", ["quant.group_size", "no effect"]),
        ("quant=int4wo quant.group_size=null", ["quant.group_size", "must be given"]),
        ("protocol.max_repetitions=2", ["less than protocol.min_repetitions"]),
        ("model=hub", ["model.id", "not given", "OWNER/NAME"]),
        ("model=gguf", ["model.path", "not given", "FILE.gguf"]),
        ("model.revision=main", ["model.revision", "no effect on model.source=random"]),
        ("tracking=server", ["tracking.uri: must be given"]),
        ("tracking.uri=http://x", ["tracking.uri", "tracking=server"]),
        ("cluster.address=auto", ["cluster.address", "cluster=ray"]),
        ("cluster.address=", ["cluster.address", "cluster=ray"]),
        ("environment.python=3.12", ["environment.python: has no effect without an environment"]),
        ("model=hub model.architecture=null model.id=.hidden", ["no id of the hub", "OWNER/NAME"]),
        ("device=cuda resources.gpus=0", ["resources.gpus"]),
        ("task.value=range(5,5)", ["task.value has no values"]),
        ("task.value=range(1,5,0)", ["step is 0"]),
        ("quant=zz*", ["matches no option", "bf16"]),
        ("task.value=glob(*)", ["not a config group"]),
        ("task.value=interval(0,1)", ["interval", "range("]),
        ("task.value=1,", ["cannot read 'task.value=1,'"]),
        ("model=known/gpt3", ["no model 'known/gpt3'", "Did you mean known/gpt2"]),
        ("model/known=gpt2", ["known is a folder of model. Write model=known/gpt2"]),
        ("+model/known=gpt2", ["known is a folder of model. Write model=known/gpt2"]),
        ("gate=default", ["no group or key gate"]),
        ("+hardware=h100", ["no group or key hardware"]),
        ("environment.file=/x", ["environment.file", "Leave it out"]),
        ("environment.pins={numpy:2.10}", ["environment.pins.numpy: is text", "quote it"]),
        ("model={path:1e-4},{path:a}", ["model.path: is text"]),
        ("environment.pins=[a]", ['["a"] is no mapping', "environment.pins={key:value}"]),
        ("model.architecture=3", ["3 is no mapping"]),
        ("verdict.rules=[1]", ["[1] is no mapping"]),
        ("task.value=choice()", ["empty choice", "key=a,b to sweep"]),
        ("=1", ["no group or key ''"]),
        ("quant=", ["chooses nothing", "nf4"]),
        ("quant=null", ["chooses nothing"]),
        ("quant=[nf4,bf16]", ["chooses nothing"]),
        ("resources.cpus=1,2", ["not part of a trial's identity", "device.threads"]),
        ("resources.accelerator=A100,H100", ["once on each, and `compare` the two by hardware"]),
        ("resources.gpus=1,2", ["once for each value"]),
        ("device.threads=2 resources.cpus=1", ["resources.cpus: 1 core for 2 threads", "give 2"]),
        ("repeats=1,2", ["not part of a trial's identity", "repeats=N"]),
        ("tracking=embedded,server", ["not part of a trial's identity"]),
        ("task.name=quality,noop", ["Write task="]),
        ("task.name=quality", ["task: is not a configuration of task quality"]),
        ("~quant", ["cannot be left out"]),
        ("~seed", ["cannot be deleted"]),
        ("~model.architecture.nosuch", ["no key model.architecture.nosuch"]),
        ("hydra.run.dir=x", ["hydra.run.dir", "tracking.root"]),
        ("hydra/launcher=ray", ["hydra/launcher", "not used here"]),
        ("hydra.searchpath=x", ["hydra.searchpath=[DIRECTORY]"]),
        ("+sweep=quant,aa", ["one sweep at a time"]),
        ("sweep.allow_larg=true", ["sweep.allow_larg", "sweep.allow_large"]),
        ("sweep.exclude=[{quantt:nf4}] quant=nf4,bf16", ["quantt", "Did you mean quant?"]),
        ("sweep.exclude=[{quant:*}] quant=nf4,bf16", ["exclude leaves no trial"]),
        ("sweep.exclude=[{quant:nf5}] quant=nf4,bf16", ["exclude quant=nf5 matches no trial"]),
        ("sweep.exclude=[nf4] quant=nf4,bf16", ["exclude is a list of {axis: value}"]),
        ("sweep.baseline={quantt:nf4} quant=nf4,bf16", ["quantt", "Did you mean quant?"]),
        ("sweep.baseline={quant:nf5} quant=nf4,bf16", ["matches no trial", "Did you mean nf4?"]),
        ("sweep.zip=[[quant,seed]] quant=nf4,bf16", ["zip names seed"]),
        ("sweep.zip=[quant] quant=nf4,bf16", ["zip is a list of lists"]),
        ("sweep.zip=[[quant,seed]] quant=nf4,bf16 seed=1,2,3", ["quant has 2, seed has 3"]),
        ("sweep.zip=[[quant,seed],[seed,quant]] quant=nf4,bf16 seed=1,2", ["more than one zip"]),
        ("sweep.repeats=0", ["sweep.repeats: 0 is less than 1"]),
        ("task.value=range(1001) seed=range(1000)", ["1,001,000 trials", "allow_large=true"]),
        ("task.value=range(10000000000000)", ["10,000,000,000,000 trials"]),
        ("task.sleep_s=range(0.0,1e9,0.1)", ["10,000,000,000 trials"]),
        ("task=noop=1", ["cannot read"]),
        ("seed=${nosuch}", ["nosuch"]),
        ("seed=${oc.env:HOME}", ["seed"]),
    ],
)  # fmt: skip
def test_a_bad_word(refused: Callable[..., str], words: str, expected: list[str]) -> None:
    message = refused(f"{BASE} {words}")
    for part in expected:
        assert part in message, message


def test_a_million_trials_are_allowed_and_one_more_is_not(refused: Callable[..., str]) -> None:
    from orchestrator.plan.compose import Composer
    from orchestrator.plan.sweep import LIMIT, read

    assert read(["seed=range(1000)", "task.value=range(1000)"], Composer()).count == LIMIT
    assert "1,000,001 trials" in refused(f"{BASE} seed=range(1000001)")


FILES = [
    ("sweep/mine.yaml", "axes: {quant: []}", "axis quant has no values"),
    ("sweep/mine.yaml", "axes: {quant: }", "axis quant has no values"),
    ("sweep/mine.yaml", "axes: {quant: ''}", "axis quant has no values"),
    ("sweep/mine.yaml", "axes: {quant: {nf4: 1}}", "axis quant is a mapping"),
    ("sweep/mine.yaml", "axes: {quant: 'nf4,nf5'}", "sweep mine: no quant 'nf5'"),
    ("sweep/mine.yaml", "axes: {tsk.value: [1]}", "sweep mine: no group or key tsk.value"),
    ("sweep/mine.yaml", "axes: {task.vale: [1, 2]}", "no key task.vale"),
    ("sweep/mine.yaml", "axes: {task.value: [1, x]}", "sweep mine, task.value: 'x' is not an int"),
    ("sweep/mine.yaml", "axes: {repeats: [1, 2]}", "sweep mine: repeats is not part"),
    ("sweep/mine.yaml", "set: {quant: nf5}", "sweep mine: no quant 'nf5'"),
    ("sweep/mine.yaml", "set: {task.value: x}", "sweep mine, task.value: 'x' is not an int"),
    ("sweep/mine.yaml", "set: {quant: nf4}\naxes: {quant: [nf4]}", "both set and an axis"),
    ("sweep/mine.yaml", "axis: {quant: [nf4]}", "sweep/mine.yaml: Key 'axis' not in"),
    ("sweep/mine.yaml", "axes: [quant]", "sweep/mine.yaml"),
    ("sweep/mine.yaml", "axes: {quant: [nf4", "not valid YAML"),
    ("sweep/mine.yaml", "axes: {quant: [nf4, bf16]}\nbaseline: {quant: fp32}", "matches no trial"),
    ("sweep/mine.yaml", "defaults: [nosuch]", "nosuch"),
    ("quant/mine.yaml", "schem: nf4", "Key 'schem' not in 'QuantConfig'"),
    ("quant/mine.yaml", "double_quant: maybe", "double_quant"),
    ("quant/mine.yaml", "scheme: nf5", "quant.scheme: 'nf5' is not one of"),
    ("quant/mine.yaml", "- nf4", "quant=mine"),
    ("task/mine.yaml", "name: nosuch", "names no task that exists"),
    ("task/mine.yaml", "name: noop\nvalu: 1", "Key 'valu' not in 'NoopConfig'"),
    ("quant/nf4.yaml", "scheme: nf4", "would hide this one"),
    ("quant/mine.yaml", "defaults: [mine]", "its defaults name it again"),
    ("sweep/mine.yaml", "defaults: [mine]", "its defaults name it again"),
]


@pytest.mark.parametrize(("name", "text", "expected"), FILES)
def test_a_bad_file(
    refused: Callable[..., str], write: Any, name: str, text: str, expected: str
) -> None:
    group = name.split("/")[0]
    word = {"sweep": "+sweep=mine", "quant": "quant=mine", "task": "task=mine"}[group]
    line = f"{'' if group == 'task' else 'task=noop '}model=random_tiny {word}"
    message = refused(line, write(name, text + "\n"))
    assert expected in message, message


def test_a_group_without_a_default_wants_a_plus(refused: Callable[..., str], write: Any) -> None:
    own = write("experiment/small.yaml", "# @package _global_\nseed: 4\n")
    assert "Write +experiment=small" in refused(f"{BASE} experiment=small", own)
    assert "Did you mean experiment?" in refused(f"{BASE} +experimnt=small", own)


def test_one_sweep_has_one_store(refused: Callable[..., str], write: Any) -> None:
    write("where/here.yaml", "# @package _global_\ntracking: {root: a}\n")
    own = write("where/there.yaml", "# @package _global_\ntracking: {root: b}\n")
    assert "tracking differs along an axis" in refused(f"{BASE} +where=here,there", own)


def test_a_missing_directory(refused: Callable[..., str], tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="--config-dir: is empty"):
        search_path([""])
    assert "no such directory" in refused(BASE, tmp_path / "nosuch")


def test_a_zip_cannot_be_narrowed_to_what_it_lacks(refused: Callable[..., str], write: Any) -> None:
    text = "axes: {seed: [1, 2], task.value: [3, 4]}\nzip: [[seed, task.value]]\n"
    message = refused(f"{BASE} +sweep=mine seed=7", write("sweep/mine.yaml", text))
    assert "seed=7 is not in the zip with task.value" in message
