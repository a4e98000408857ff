"""task.evaluate: texts as lm-evaluation-harness reads them, and its tasks answered for real."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.attempt import AttemptReport
from orchestrator.engines.cache import cache_root
from orchestrator.engines.port import NextLogprobs
from orchestrator.engines.tokenizer import Tokenizer
from orchestrator.environments.build import built
from orchestrator.errors import ConfigError, InputError
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import Value
from orchestrator.tasks import evaluation
from testing.environments import environment
from testing.trial import make_identity, run_attempt

ENVIRONMENT = "lm_eval"

BEGIN, SPACE = 0, 1
LETTERS = "abcdefgh"


class Bigram:
    """A model that knows what follows each token; two spaces are one token of their own."""

    context_tokens = 8

    def __init__(self, *, begins: bool = False, start_id: int | None = BEGIN) -> None:
        logits = np.random.default_rng(1).normal(size=(12, 12))
        self.table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        begin = (BEGIN,) if begins else ()
        self.tokenizer = Tokenizer(self.encode, begin, start_id=start_id)
        self.longest = 0

    def encode(self, text: str) -> list[int]:
        return [SPACE if sign == " " else 2 + LETTERS.index(sign) for sign in text]

    def likelihood(self, ids: Sequence[int], targets: Sequence[int]) -> tuple[float, bool]:
        self.longest = max(self.longest, len(ids))
        rows = self.table[list(ids[-len(targets) :])]
        wanted = rows[range(len(targets)), list(targets)]
        return NextLogprobs(wanted, rows.argmax(-1), rows).likelihood(targets)

    def chain(self, ids: Sequence[int]) -> float:
        return float(sum(self.table[a, b] for a, b in pairwise(ids)))


def reader(model: Any) -> evaluation._Reader:
    return evaluation._Reader(model, model.tokenizer)


def test_a_continuation_is_scored_after_its_context_alone() -> None:
    model = Bigram()
    found, greedy = reader(model).likelihood("ab", "cd")
    assert found == pytest.approx(model.chain([3, 4, 5]))
    assert greedy == (model.table[3].argmax() == 4 and model.table[4].argmax() == 5)
    # A space at the end of the context belongs to the word that follows.
    assert reader(model).likelihood("a ", "b")[0] == pytest.approx(model.chain([2, SPACE, 3]))


def test_begin_of_text_stands_where_the_tokenizer_puts_it() -> None:
    model = Bigram(begins=True)
    assert reader(model).likelihood("a", "b")[0] == pytest.approx(model.chain([2, 3]))
    assert model.longest == 2
    assert reader(model).whole("ab") == pytest.approx(model.chain([BEGIN, BEGIN, 2, 3]))


def test_nothing_before_it_is_the_start_of_a_text() -> None:
    model = Bigram()
    assert reader(model).likelihood("", "ab")[0] == pytest.approx(model.chain([BEGIN, 2, 3]))
    blank = model.chain([BEGIN, SPACE, 2])
    assert reader(model).likelihood(" ", "a")[0] == pytest.approx(blank)
    with pytest.raises(InputError, match="no token to predict the first of a text from"):
        reader(Bigram(start_id=None)).likelihood("", "ab")


def test_a_long_context_is_cut_from_the_left() -> None:
    model = Bigram()
    read = reader(model)
    assert read.likelihood("a" * 20, "bc")[0] == pytest.approx(model.chain([2, 3, 4]))
    assert model.longest == model.context_tokens
    assert read.cut == 1
    with pytest.raises(InputError, match="an answer has 9 tokens, more than the 8 that are read"):
        read.likelihood("a", "b" * 9)


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 16, 21])
def test_every_token_of_a_text_is_scored_once_within_the_context(tokens: int) -> None:
    model = Bigram()
    text = (LETTERS * 3)[:tokens]
    assert reader(model).whole(text) == pytest.approx(model.chain([BEGIN, *model.encode(text)]))
    assert model.longest <= model.context_tokens


def test_what_names_no_evaluation_is_one_line(tmp_path: Path) -> None:
    evaluation.check("")
    evaluation.check("lm_eval:arc_easy")
    for asked in ("arc_easy", "lm_eval:", "other:arc_easy"):
        with pytest.raises(ConfigError, match=r"task\.evaluate: .* names no evaluation\. Write"):
            evaluation.check(asked)
    with pytest.raises(ConfigError, match="no such file"):
        evaluation.check(f"lm_eval:{tmp_path}/mine.yaml")


def test_the_data_of_a_task_is_part_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text("{}")
    file = tmp_path / "mine.yaml"
    file.write_text("task: mine\ndataset_kwargs:\n  data_files: {test: items.jsonl}\n")
    before = evaluation.content(f"lm_eval:{file}")
    assert before == evaluation.content(f"lm_eval:{file}")
    (tmp_path / "items.jsonl").write_text("{ }")
    assert evaluation.content(f"lm_eval:{file}") != before
    assert evaluation.content("lm_eval:arc_easy") == {} == evaluation.content("")


ITEMS = 32
TASK = """task: mine
dataset_path: json
dataset_kwargs:
  data_files: items.jsonl
test_split: train
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - metric: acc
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    items = [
        {"context": f"{n} and {n + 1} are", "choices": [str(n * 2), "ten", "a"], "label": n % 3}
        for n in range(ITEMS)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    file = tmp_path / "mine.yaml"
    file.write_text(TASK)
    return file


# The harness's own model, by this Python, which has torch: the harness from behind what is here.
HF = """
import json, sys
directory, site, kind, items = sys.argv[1:]
sys.path.append(site)
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

model = HFLM(pretrained=directory, dtype="float32", device="cpu", batch_size=1)
asked = [each for line in open(items) for each in json.loads(line)["asked"]]
found = getattr(model, kind)(
    [Instance(request_type=kind, doc={}, arguments=tuple(a), idx=0) for a in asked]
)
print(json.dumps(found))
"""


def theirs(kind: str, report: AttemptReport, place: Path) -> list[Any]:
    """What the harness's own model answers to what an attempt was asked."""
    items = place / "evaluation.jsonl"
    items.write_bytes(report.artifacts["evaluation.jsonl"])
    (site,) = built(environment(ENVIRONMENT)).parents[1].glob("lib/python*/site-packages")
    digest = report.facts["weights_digest"]
    (directory,) = (cache_root() / "converted").glob(f"{digest[:32]}-*")
    words = [sys.executable, "-c", HF, str(directory), str(site), kind, str(items)]
    answer = subprocess.run(words, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    found: list[Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def items_of(report: AttemptReport) -> list[dict[str, Any]]:
    lines = report.artifacts["evaluation.jsonl"].decode().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.long
def test_a_task_of_the_harness_is_answered_as_its_own_model_would(
    isolation: Isolation, task_file: Path, reads_bytes: Path, tmp_path: Path
) -> None:
    model = {"source": "gguf", "path": str(reads_bytes), "architecture": None}
    asked = make_identity("fp32", task="quality", model=model, tokens=16)
    asked["task"]["evaluate"] = f"lm_eval:{task_file}"
    report = run_attempt(isolation, asked)
    assert report.reason is None
    scores = report.facts["evaluation_items"]
    assert len(scores["evaluation.acc"]) == ITEMS == report.facts["evaluation"]["items"]
    means = {name: math.fsum(each) / ITEMS for name, each in scores.items()}
    for name in ("evaluation.acc", "evaluation.item_loss"):
        assert value_of(report, name) == pytest.approx(means[name], abs=1e-5)
    assert value_of(report, "evaluation.item_loss") > 0

    ours = [answer[0] for item in items_of(report) for answer in item["answers"]]
    assert ours == pytest.approx(
        [value for value, _ in theirs("loglikelihood", report, tmp_path)], abs=1e-3
    )
    assert len(set(ours)) > ITEMS


WORDS = """task: words
dataset_path: json
dataset_kwargs:
  data_files: items.jsonl
test_split: train
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["8;w67;T", "46; #w67;Tw46; #w"]
  max_gen_toks: 24
filter_list:
  - name: first-word
    filter:
      - {function: regex, regex_pattern: "(w[0-9]+)"}
      - {function: take_first}
  - name: last-word
    filter:
      - {function: regex, regex_pattern: "(w[0-9]+)", group_select: -1}
      - {function: take_first}
metric_list:
  - metric: exact_match
"""


@pytest.fixture
def words_file(tmp_path: Path) -> Path:
    """A task of generated text, some of whose contexts are longer than the tiny model's."""
    items = [
        {"context": f"{n} a b {chr(97 + n)} " * (1 + 8 * (n % 4)), "answer": f"w{67 - 29 * (n % 2)}"}
        for n in range(ITEMS)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    file = tmp_path / "words.yaml"
    file.write_text(WORDS)
    return file


@pytest.mark.long
def test_text_is_generated_as_the_harness_s_own_model_would(
    isolation: Isolation, words_file: Path, writes_ascii: Path, tmp_path: Path
) -> None:
    model = {"source": "gguf", "path": str(writes_ascii), "architecture": None}
    found = {}
    for engine in ("transformers",):
        asked = make_identity("fp32", engine=engine, task="quality", model=model, tokens=16)
        asked["task"]["evaluate"] = f"lm_eval:{words_file}"
        report = run_attempt(isolation, asked)
        assert report.reason is None
        found[engine] = [answer for item in items_of(report) for answer in item["answers"]]
        print(found[engine], report.facts["evaluation"], {k: v for k, v in report.metrics.items() if "eval" in k}, report.facts["evaluation_items"], file=sys.stderr)
        if engine == "transformers":
            assert found[engine] == theirs("generate_until", report, tmp_path)
    assert 0


@pytest.mark.long
def test_what_cannot_be_answered_is_one_line(
    isolation: Isolation, task_file: Path, reads_bytes: Path
) -> None:
    model = {"source": "gguf", "path": str(reads_bytes), "architecture": None}

    def reason(evaluate: str) -> str:
        asked = make_identity("fp32", task="quality", model=model, tokens=16)
        asked["task"]["evaluate"] = evaluate
        return run_attempt(isolation, asked).reason or ""

    assert "lm-evaluation-harness cannot do this" in reason("lm_eval:no_such_task")
    written = task_file.read_text().replace("multiple_choice", "generate_until")
    written = written.replace('doc_to_choice: "{{choices}}"\n', "").replace("label", "context")
    task_file.write_text(written.replace("metric: acc", "metric: exact_match"))
    found = reason(f"lm_eval:{task_file}")
    assert "asks for generate_until, and only log-likelihoods are answered" in found


def value_of(report: AttemptReport, name: str) -> float:
    metric = report.metrics[name]
    assert isinstance(metric, Value)
    return metric.value
