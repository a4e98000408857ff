"""Runs lm-evaluation-harness in an environment of its own: ``python -m ….harness REQUEST TARGET``.

By the Python of this program, on behalf of an attempt whose environment has neither the harness nor
what builds environments. ``REQUEST`` is JSON: ``of``, a task's name or file; with ``answers`` what
comes of them is written to ``TARGET``, without them what is asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from orchestrator.engines.cache import cache_root, publish
from orchestrator.engines.digest import digest_json
from orchestrator.engines.separate import exits_for_a_full_disk
from orchestrator.environments.build import built
from orchestrator.environments.lock import why_unresolved
from orchestrator.plan.lm_eval import harness_environment

_SIDE = Path(__file__).with_name("lm_eval_side.py")


def main(request: Path, target: Path) -> None:
    """Write to ``target`` what is asked; or, given answers, what they amount to."""
    asked = json.loads(request.read_text())
    packages = dict(harness_environment())
    if reason := why_unresolved(packages):
        sys.exit(reason)
    python = built(packages)
    key = digest_json({"of": asked["of"], "content": asked["content"], "packages": packages})

    def make(file: Path) -> None:
        _run(python, asked["of"], file)

    requests = publish(cache_root() / "evaluations" / f"{key[:32]}.json", make)
    if "answers" not in asked:
        target.symlink_to(requests)
        return
    with tempfile.TemporaryDirectory() as directory:
        answers = Path(directory, "answers.json")
        answers.write_text(json.dumps(asked["answers"]))
        _run(python, asked["of"], requests, answers, target)


def _run(python: Path, *arguments: str | Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        if str(arguments[0]).endswith((".yaml", ".yml")):
            # What is made of a local file is nobody else's.
            kept["HF_DATASETS_CACHE"] = scratch
        done = subprocess.run(
            [str(python), "-I", str(_SIDE), *map(str, arguments)],
            env={**kept, "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=subprocess.STDOUT,
        )
    if done.returncode != 0:
        sys.exit(done.returncode)


if __name__ == "__main__":
    exits_for_a_full_disk(main, Path(sys.argv[1]), Path(sys.argv[2]))
