"""A task of generated text for the harness, and what an attempt answered to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import AttemptReport
from testing.trial import run_attempt

if TYPE_CHECKING:
    from orchestrator.isolate.isolation import Isolation

ITEMS = 32
#: Of what the tiny model that writes ASCII writes; the ends lie across several tokens.
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


def words_task(place: Path, items: int = ITEMS) -> Path:
    """The task's file in ``place``; half of its contexts are longer than a tiny model's."""
    lines = [
        {
            "context": f"{n} a b {chr(97 + n % 26)} " * (1 + 8 * (n % 4)),
            "answer": ("w67", "w38")[n % 2],
        }
        for n in range(items)
    ]
    (place / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    file = place / "words.yaml"
    file.write_text(WORDS)
    return file


def evaluated(
    isolation: Isolation, identity: dict[str, Any], model: Path | None, task: Path
) -> AttemptReport:
    """The report of an attempt that answered ``task``, on a GGUF file where one is given."""
    if model is not None:
        identity["model"] |= {"source": "gguf", "path": str(model), "architecture": None}
    identity["task"]["evaluate"] = f"lm_eval:{task}"
    report = run_attempt(isolation, identity)
    assert report.reason is None, report.reason
    return report


def items_of(report: AttemptReport) -> list[dict[str, Any]]:
    """What was recorded of each item."""
    lines = report.artifacts["evaluation.jsonl"].decode().splitlines()
    return [json.loads(line) for line in lines]


def answers_of(report: AttemptReport) -> list[Any]:
    """All answers, in order."""
    return [answer for item in items_of(report) for answer in item["answers"]]
