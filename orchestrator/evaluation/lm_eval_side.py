"""The side of lm-evaluation-harness: makes the requests of a task, and counts the answers.

Run by the Python of ``environment=lm_eval``, which has nothing of this project but this file::

    lm_eval_side.py TASK|FILE REQUESTS.json                        what is asked, in order
    lm_eval_side.py TASK|FILE REQUESTS.json ANSWERS.json COUNTED.json

The harness goes through the task twice, the same way: the first time every answer is 0, the second
time the answers are those of the engine that was measured. Selecting, filtering and aggregating are
the harness's own.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_SEED = 1234
_RESAMPLES = 1000


def main(
    name: str, requests: Path, answers: Path | None = None, counted: Path | None = None
) -> None:
    """Write ``requests``; or, with ``answers`` to them, what they amount to."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    given = None if answers is None else json.loads(answers.read_text())

    class Between(LM):  # type: ignore[misc]
        """Notes what is asked, and answers with what was given."""

        def __init__(self) -> None:
            super().__init__()
            self.asked: list[dict[str, Any]] = []

        def _answers(self, kind: str, asked: list[Any], nothing: Any) -> list[Any]:
            begin = len(self.asked)
            self.asked += [{"kind": kind, "arguments": one.args} for one in asked]
            if given is None:
                return [nothing] * len(asked)
            return [tuple(a) if isinstance(a, list) else a for a in given[begin : len(self.asked)]]

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            return self._answers("loglikelihood", requests, (0.0, False))

        def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
            return self._answers("loglikelihood_rolling", requests, 0.0)

        def generate_until(self, requests: list[Any]) -> list[Any]:
            return self._answers("generate_until", requests, "")

    folder = None
    if name.endswith((".yaml", ".yml")):
        file = Path(name)
        folder, name = str(file.parent), _task_of(file)
        os.chdir(folder)  # the paths in it are from its own folder
    between = Between()
    manager = TaskManager(include_path=folder)
    loaded = manager.load([name])
    # What is in a group stays in it; what a tag gathers are tasks by themselves.
    group = loaded["groups"].get(name)
    found = simple_evaluate(
        model=between,
        tasks=[*loaded["tasks"].values()] if group is None else [group],
        task_manager=manager,
        bootstrap_iters=_RESAMPLES,
        random_seed=_SEED,
        numpy_random_seed=_SEED,
        torch_random_seed=_SEED,
        fewshot_random_seed=_SEED,
    )
    if counted is None:
        requests.write_text(json.dumps(between.asked))
    elif json.loads(json.dumps(between.asked)) != json.loads(requests.read_text()):
        sys.exit("the harness asks for something else the second time")
    else:
        counted.write_text(json.dumps(_counted(name, found, loaded["tasks"])))


def _task_of(file: Path) -> str:
    # Without reading the rest, which may name functions to call.
    found = re.search(r"^task:\s*['\"]?([^'\"#\s]+)", file.read_text("utf-8"), re.M)
    return found[1] if found else sys.exit("it has no line `task: NAME`")


def _counted(name: str, found: dict[str, Any], tasks: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the task, and of every item what it scored."""
    aggregated = found["results"].get(name) or {}
    metrics: dict[str, Any] = {}
    better = found.get("higher_is_better", {}).get(name) or {}
    for key, value in aggregated.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = aggregated.get(f"{metric}_stderr,{chosen}")
        metrics[_named(metric, chosen)] = {
            "value": value,
            "standard_error": error if isinstance(error, float) else None,
            "better": None if metric not in better else "higher" if better[metric] else "lower",
        }
    if not metrics:
        others = ", ".join(sorted(found["samples"]))
        sys.exit(f"{name} has no figure of its own; name one of its tasks: {others}")
    items: dict[str, dict[str, Any]] = {}
    for task, all_of in sorted(found["samples"].items()):
        for sample in all_of:
            # Each filter has its own sample of an item, with other scores of the same answers.
            one = _item(tasks[task], task, sample)
            items.setdefault(one["item"], one)["scores"].update(one["scores"])
    version = metadata.version("lm-eval")
    return {"version": version, "metrics": metrics, "items": [*items.values()]}


def _named(metric: str, chosen: str) -> str:
    """A metric of what a filter chose of the answers."""
    return metric if chosen == "none" else f"{metric}.{chosen}"


def _item(task: Any, name: str, sample: dict[str, Any]) -> dict[str, Any]:
    """What one item scored, and ``item_loss``: of the right answer, in nats, where there is one."""
    scores = {
        _named(metric, sample["filter"]): float(sample[metric])
        for metric in sample["metrics"]
        if isinstance(sample.get(metric), int | float)
    }
    answers = [one[0] for one in sample["resps"]]
    loss = _loss(task, answers, sample)
    if loss is not None:
        scores["item_loss"] = loss
    return {
        "item": f"{name}/{sample['doc_id']}",
        "asked": sample["arguments"],
        "target": str(sample["target"]),
        "answers": answers,
        "scores": scores,
    }


def _loss(task: Any, answers: list[Any], sample: dict[str, Any]) -> float | None:
    """Of several answers the right one's among these; of one, its own; None where none is right."""
    if not answers or isinstance(answers[0], str):
        return None
    logs = [float(one[0]) if isinstance(one, list | tuple) else float(one) for one in answers]
    if task.OUTPUT_TYPE != "multiple_choice":
        return -logs[0] if len(logs) == 1 else None
    choices = task.doc_to_choice(sample["doc"])
    right = _right(task, choices, sample)
    if right is None:
        return None
    # Behind them may stand what the choices are likely by themselves (mutual information).
    logs = logs[: len(choices)]
    highest = max(logs)
    return highest + math.log(math.fsum(math.exp(each - highest) for each in logs)) - logs[right]


def _right(task: Any, choices: list[str], sample: dict[str, Any]) -> int | None:
    """Which of the choices is the right one, as the harness itself tells for an accuracy."""
    # Where the choices are contexts of one continuation, the text says which.
    gold = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    if isinstance(gold, str):
        return choices.index(gold) if gold in choices else None
    return gold if isinstance(gold, int) and 0 <= gold < len(choices) else None


if __name__ == "__main__":
    name, *files = sys.argv[1:]
    try:
        main(name, *map(Path, files))
    except (KeyError, ValueError, OSError, ImportError) as error:
        said = str(error.args[0] if isinstance(error, KeyError) else error).strip()
        sys.exit(said.splitlines()[0][:250] if said else type(error).__name__)
