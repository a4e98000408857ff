"""How long planning 10,000 trials takes, and how much memory: two group axes, two value axes.

Run it as ``python benchmarks/plan.py``; ``--side N`` makes N × N × N × N trials.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks._machine import arguments, emit, peak_rss_bytes

# Planned once for a working task (its check included) and once for one that checks nothing.
TASKS = {"inference": ("prompt_tokens", "new_tokens"), "noop": ("value", "sleep_s")}


def groups(directory: Path, side: int) -> None:
    """Write ``side`` options each of two groups of a person's own."""
    for group in ("model", "protocol"):
        (directory / group).mkdir(parents=True)
    for number in range(side):
        (directory / "model" / f"m{number}.yaml").write_text(
            f"defaults: [random_tiny, _self_]\narchitecture: {{num_hidden_layers: {number + 1}}}\n"
        )
        (directory / "protocol" / f"p{number}.yaml").write_text(
            f"defaults: [quick, _self_]\nwarmup: {number}\n"
        )


def once(task: str, side: int) -> tuple[float, int]:
    """Seconds of one ``build``, and the trials it made."""
    from orchestrator.plan.expand import build

    first, second = TASKS[task]
    with tempfile.TemporaryDirectory() as name:
        groups(Path(name), side)
        begin = time.perf_counter()
        plan = build(
            [
                f"task={task}",
                "model=" + ",".join(f"m{number}" for number in range(side)),
                "protocol=" + ",".join(f"p{number}" for number in range(side)),
                f"task.{first}=range(1,{side + 1})",
                f"task.{second}=range(1,{side + 1})",
            ],
            config_dirs=[Path(name)],
            device_kind=lambda cluster: "cpu",
        )
        return time.perf_counter() - begin, len(plan.trials)


def main() -> None:
    args = arguments(__doc__, side=10, repeat=3)
    for task in TASKS:
        taken = [once(task, args.side) for _ in range(args.repeat)]
        count = taken[0][1]
        if count != args.side**4:
            raise SystemExit(f"planned {count} trials, expected {args.side**4}")
        required = "<= 10" if count == 10_000 else None
        value = statistics.median(seconds for seconds, _ in taken)
        emit(f"plan_{count}_trials_{task}_s", value, "s", required=required, n=len(taken))
    emit("plan_peak_rss_bytes", peak_rss_bytes(), "bytes", required="< 1073741824")


if __name__ == "__main__":
    main()
