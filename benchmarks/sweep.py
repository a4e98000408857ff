"""What a person waits for: the quant sweep, the same again, the first trial, and short commands.

Runs the commands as they are typed, in a directory of its own. ``--short`` leaves the sweep itself
out and uses a model of two layers instead.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._machine import arguments, emit

SMALL = ("+sweep=quant", "model=random_tiny", "quant=fp32", "task.quality_tokens=0")
TIMES = 5


def run(directory: Path, *words: str) -> tuple[float, str]:
    """Wall seconds and stdout of one command; ends this program if it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=directory,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    took_s = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return took_s, done.stdout


def first_trial_s(directory: Path, began: float, run_id: str) -> float:
    """Seconds from the command to the start of its first attempt, as MLflow recorded it."""
    import sqlite3

    with sqlite3.connect(directory / "mlruns" / "mlflow.db") as database:
        (first_ms,) = database.execute(
            "select min(r.start_time) from runs r join tags t on t.run_uuid = r.run_uuid"
            " where t.key = 'mlflow.parentRunId' and t.value = ?",
            (run_id,),
        ).fetchone()
    return float(first_ms) / 1000 - began


def main() -> None:
    """Print one JSON line a figure."""
    options = arguments(__doc__, short=False)
    sweep = SMALL if options.short else ("+sweep=quant",)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        began = time.time()
        took_s, out = run(directory, *sweep, "--json")
        result = json.loads(out)
        count = len(result["trials"])
        if not options.short:
            emit("sweep_quant_s", took_s, "s", required="<= 300", n=count)
        waited_s = [first_trial_s(directory, began, result["run_id"])]
        while options.short and len(waited_s) < TIMES:
            began = time.time()
            _, again = run(directory, *sweep, "force=true", "--json")
            waited_s.append(first_trial_s(directory, began, json.loads(again)["run_id"]))
        waited = statistics.median(waited_s)
        emit("time_to_first_trial_s", waited, "s", required="<= 8", n=len(waited_s))
        config_hash = result["trials"][0]["hash"]
        for figure, words, limit in (
            ("nothing_to_do_s", sweep, 3),
            ("help_s", ("--help",), 1),
            ("plan_s", ("plan", *sweep), 2),
            ("show_s", ("show", config_hash), 3),
            ("tab_s", ("completion", "bash", "--line", "orchestrator quant=bf16,n"), 1),
        ):
            times_s = [run(directory, *words)[0] for _ in range(TIMES)]
            emit(figure, statistics.median(times_s), "s", required=f"<= {limit}", n=TIMES)


if __name__ == "__main__":
    main()
