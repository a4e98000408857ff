"""task.evaluate: texts as lm-evaluation-harness reads them, and its tasks answered for real."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.attempt import AttemptReport
from orchestrator.engines.cache import cache_root
from orchestrator.engines.port import NextLogprobs
from orchestrator.engines.tokenizer import Tokenizer, text_until
from orchestrator.environments.build import built
from orchestrator.errors import ConfigError, InputError
from orchestrator.evaluation import lm_eval_side
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import Value
from orchestrator.tasks import evaluation
from testing.environments import environment
from testing.trial import make_identity, run_attempt
from testing.written import ITEMS, WORDS, answers_of, evaluated, words_task

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


WRITTEN = st.lists(st.sampled_from(["a", "b", "ab", "ba", "", " a", "abab"]), max_size=12)


@given(WRITTEN, st.lists(st.text("ab ", max_size=3), max_size=3), st.integers(0, 12))
def test_a_text_ends_at_the_first_token_that_brings_one_of_its_ends(
    pieces: list[str], until: list[str], end: int
) -> None:
    taken = []

    def tokens() -> Iterator[int]:
        for at in range(len(pieces)):
            taken.append(at)
            yield at

    tokenizer = Tokenizer(list, decode=lambda ids: "".join(pieces[i] for i in ids), end_ids=(end,))
    found = text_until(tokens(), until, tokenizer)
    ends = [each for each in until if each]
    texts = ["".join(pieces[:count]) for count in range(min(end, len(pieces)) + 1)]
    whole = next((text for text in texts if any(each in text for each in ends)), texts[-1])
    # As lm_eval.models.utils.postprocess_generated_text.
    for each in ends:
        whole = whole.split(each)[0]
    assert found == whole
    # Nothing is generated after it.
    assert len(taken) <= min(len(pieces), end + 1)
    assert all(each not in "".join(pieces[: len(taken) - 1]) for each in ends)


class Writer(Bigram):
    """A model that writes ``count`` tokens of what it was given, and says how much it was asked."""

    asked: tuple[list[int], int, list[str]]

    def continuation(self, ids: Any, most: int, until: Any, tokenizer: Any) -> str:
        self.asked = list(ids), most, list(until)
        return "written"


@given(st.integers(0, 20), st.integers(1, 7), st.booleans())
def test_a_context_leaves_room_for_what_is_written(tokens: int, most: int, begins: bool) -> None:
    model = Writer(begins=begins)
    read = reader(model)
    text = (LETTERS * 3)[:tokens]
    assert read.generation(text, {"max_gen_toks": most, "until": "b"}) == "written"
    # Of what is empty, begin-of-text alone is the context.
    whole = [BEGIN] * (begins or not text) + model.encode(text)
    kept = whole[-(model.context_tokens - most) :]
    assert model.asked == (kept, most, ["b"])
    assert read.cut == (len(kept) < len(whole))


def test_a_begin_of_text_that_a_context_brings_is_not_put_before_it_again() -> None:
    model = Writer(begins=True)
    model.tokenizer = replace(model.tokenizer, encode=lambda text: [BEGIN, 2])
    reader(model).generation("<s>a", {"max_tokens": 2})
    assert model.asked == ([BEGIN, 2], 2, [])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"do_sample": True}, "do_sample=True, temperature=0.0, and answers are greedy"),
        ({"temperature": 0.7}, "do_sample=True, temperature=0.7, and"),
        ({"num_beams": 4}, "generated with num_beams=4, and"),
        ({"max_gen_toks": 8}, "may have 8 tokens, and no context is left of 8"),
        ({}, "may have 256 tokens"),
    ],
)
def test_what_is_not_greedy_or_too_long_is_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        reader(Writer()).check(options)
    greedy = {"do_sample": False, "temperature": 1.0, "top_p": 0.9, "until": [], "max_tokens": 4}
    reader(Writer()).check(greedy)


def test_an_engine_without_ids_and_texts_cannot_generate() -> None:
    with pytest.raises(InputError, match="cannot generate for an evaluation"):
        text_until([1], [], Tokenizer(list))


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


def test_so_is_what_a_task_includes_and_the_code_it_calls(tmp_path: Path) -> None:
    written = {
        "mine.yaml": "task: mine\ninclude: common.yaml\n",
        "common.yaml": "doc_to_text: !function texts.ask\ndata_files: items.jsonl\n",
        "texts.py": "from words import ask\n",
        "words.py": "def ask(doc): return doc\n",
        "items.jsonl": "words.py mine.yaml",
        "other.py": "",
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text)

    def found() -> dict[str, str | None]:
        return evaluation.content(f"lm_eval:{tmp_path}/mine.yaml")

    before = found()
    assert before == found()
    for name in written:
        (tmp_path / name).write_text(written[name] + " ")
        assert (found() == before) == (name == "other.py"), name
        (tmp_path / name).write_text(written[name])


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


def choices(
    logs: list[float], choices: list[str], target: Any, text: Any = "of", several: int = 0
) -> float | None:
    """The loss of one item of multiple choice."""
    task = SimpleNamespace(
        OUTPUT_TYPE="multiple_choice",
        multiple_input=several,
        doc_to_text=lambda doc: text,
        doc_to_choice=lambda doc: choices,
    )
    sample = {"doc": {}, "target": target}
    return lm_eval_side._loss(task, [(each, False) for each in logs], sample)


def test_the_right_answer_is_the_one_that_the_harness_takes() -> None:
    first = math.log(1 + math.exp(-2))
    assert choices([-1.0, -3.0], ["a", "b"], 0) == pytest.approx(first)
    assert choices([-1.0, -3.0], ["a", "b"], "b") == pytest.approx(first + 2)
    # An answer that is a digit is not the place of another.
    assert choices([-3.0, -1.0], ["0", "1"], "1") == pytest.approx(first)
    assert choices([-1.0, -3.0], ["1", "0"], "1") == pytest.approx(first)
    # Contexts of one continuation: the target is the same behind each, the text says which.
    assert choices([-3.0, -1.0], ["the cat", "the dog"], "sat", 1, 2) == pytest.approx(first)
    # What choices are likely without a context is not among the answers.
    assert choices([-1.0, -3.0, -9.0, 0.0], ["a", "b"], 0) == pytest.approx(first)
    for nothing in (2, -1, "c", [0, 1]):
        assert choices([-1.0, -3.0], ["a", "b"], nothing) is None


OTHER_TASKS = {
    "starts": """doc_to_text: "{{label}}"
doc_to_choice: "{{starts}}"
doc_to_target: "{{rest}}"
metric_list:
  - metric: acc
""",
    "digits": """doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc_mutual_info
""",
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "item", "logs"),
    [
        ("starts", {"label": 1, "starts": ["The cat", "The dog"], "rest": "sat"}, [-3.0, -1.0]),
        (
            "digits",
            {"context": "a and b are", "choices": ["0", "2", "1"], "answer": "2"},
            [-3.0, -1.0, -99.0, -1.0, -1.0, -1.0],
        ),
    ],
)
def test_the_harness_itself_says_which_answer_is_right(
    name: str, item: dict[str, Any], logs: list[float], tmp_path: Path
) -> None:
    (tmp_path / "items.jsonl").write_text(json.dumps(item))
    file = tmp_path / "mine.yaml"
    file.write_text(TASK[: TASK.index("doc_to_text")] + OTHER_TASKS[name])
    side = [str(built(environment(ENVIRONMENT))), "-I", lm_eval_side.__file__, str(file)]
    files = [str(tmp_path / f"{each}.json") for each in ("requests", "answers", "counted")]
    Path(files[1]).write_text(json.dumps([[each, False] for each in logs]))
    for named in (files[:1], files):
        subprocess.run([*side, *named], check=True, env={**os.environ, "HF_HOME": str(tmp_path)})
    (found,) = json.loads(Path(files[2]).read_text())["items"]
    assert found["scores"]["item_loss"] == pytest.approx(math.log(1 + math.exp(-2)))


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

    ours = [answer[0] for answer in answers_of(report)]
    assert ours == pytest.approx(
        [value for value, _ in theirs("loglikelihood", report, tmp_path)], abs=1e-3
    )
    assert len(set(ours)) > ITEMS


@pytest.mark.long
def test_text_is_generated_as_the_harness_s_own_model_would(
    isolation: Isolation, writes_ascii: Path, tmp_path: Path
) -> None:
    exact = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attention": "off"}
    asked = [
        make_identity("fp32", task="quality"),
        # In its own room there is none for what is asked: neither depth, cache nor graph is of it.
        make_identity("fp32", prompt_tokens=4, new_tokens=2, depth=64, batch_size=2),
        make_identity("fp32", prompt_tokens=4, new_tokens=2, cache="static"),
        make_identity("source", engine="llamacpp", task="quality", **exact),
    ]
    task = words_task(tmp_path)
    reports = [evaluated(isolation, each, writes_ascii, task) for each in asked]
    expected = theirs("generate_until", reports[0], tmp_path)
    assert len(set(expected)) > 4
    for report in reports:
        assert answers_of(report) == expected
        facts = report.facts["evaluation"]
        assert (facts["items"], facts["cut_requests"]) == (ITEMS, ITEMS // 2)
        # A metric of each filter, paired item by item.
        scores = report.facts["evaluation_items"]
        assert scores.keys() == {f"evaluation.exact_match.{w}-word" for w in ("first", "last")}
        for name, each in scores.items():
            assert 0 < value_of(report, name) == math.fsum(each) / ITEMS < 1
        assert "evaluation.item_loss" not in report.metrics


@pytest.mark.long
def test_what_cannot_be_answered_is_one_line(
    isolation: Isolation, reads_bytes: Path, tmp_path: Path
) -> None:
    model = {"source": "gguf", "path": str(reads_bytes), "architecture": None}

    def reason(evaluate: str) -> str:
        asked = make_identity("fp32", task="quality", model=model, tokens=16)
        asked["task"]["evaluate"] = evaluate
        return run_attempt(isolation, asked).reason or ""

    assert "lm-evaluation-harness cannot do this" in reason("lm_eval:no_such_task")
    file = words_task(tmp_path)
    file.write_text(WORDS.replace("max_gen_toks", "temperature: 0.7\n  max_gen_toks"))
    found = reason(f"lm_eval:{file}")
    assert "asks for text generated with do_sample=True, temperature=0.7, and answers are" in found


def value_of(report: AttemptReport, name: str) -> float:
    metric = report.metrics[name]
    assert isinstance(metric, Value)
    return metric.value
