"""The live view: plain lines off a terminal, a board that fits on one, drawn by one thread."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest
from rich.cells import cell_len
from rich.console import Console

from orchestrator.attempt import Outcome, PlannedAttempt, RuleResult, Slot
from orchestrator.commands.plain_signs import HANDLER, use_plain_signs
from orchestrator.measure.metric import Phase
from orchestrator.report.analyse.labels import labels_of
from orchestrator.report.show.board import Board, core_ranges, device_of
from orchestrator.report.show.board_view import draw
from orchestrator.report.show.live import LiveView


class Terminal(io.StringIO):
    """A text file that says it is a terminal and remembers who wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: set[str] = set()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writers.add(threading.current_thread().name)
        return super().write(text)


def spec_of(trial, number=1):
    return PlannedAttempt(trial, number, f"{trial.hash[:12]}-{number}")


def play(view, make, plan, endings):
    """Run a whole sweep through the port; ``endings`` maps a trial's position to an outcome."""
    for trial in plan.trials:
        view.submitted(spec_of(trial))
    for at, trial in enumerate(plan.trials):
        view.started(spec_of(trial), make.slot())
        view.phase(spec_of(trial), "decode")
        outcome, reason = endings.get(at, (Outcome.OK, None))
        view.finished(make.report(trial, outcome=outcome, reason=reason), trial)


def board_of(make, running=3, finished=4, waiting=5, bad=1, **given):
    board = Board("quant", finished + running + waiting + 2, 2, **given)
    plan = make.plan(prompts=tuple(range(1, finished + running + 1)))
    labels = labels_of(plan)
    for at, trial in enumerate(plan.trials[: finished + running]):
        spec = spec_of(trial)
        board.submit(spec.attempt_id)
        board.start(spec.attempt_id, labels[trial.hash], make.slot(f"node-{at % 2}"), 10.0 * at)
        board.enter(spec.attempt_id, "decode")
        if at < finished:
            outcome = Outcome.OOM_HOST if at < bad else Outcome.OK
            report = make.report(trial, outcome=outcome, reason="killed" * 40)
            board.finish(report, labels[trial.hash], 10.0 * at + 8)
    return board


def test_off_a_terminal_every_attempt_is_one_plain_line(make):
    out = io.StringIO()
    plan = make.plan()
    console = Console(file=out, width=80)
    with LiveView(console, total=10, cached=2, sweep="quant", labels=labels_of(plan)) as view:
        play(view, make, plan, {2: (Outcome.OOM_HOST, "killed by the kernel\n\x1b[31mat 8 GiB")})
        view.message("one result is still in the spool")
    lines = out.getvalue().splitlines()
    assert lines[0] == "quant: 8 attempts to run, 2 of 10 already there"
    assert lines[1].startswith("[1/8] ok   fp32 · 512→32  ")
    assert lines[3].startswith("[3/8] oom_host  bf16 · 512→32  ")
    assert lines[3].endswith("killed by the kernel at 8 GiB")
    assert lines[-2] == "one result is still in the spool"
    assert lines[-1].startswith("quant: 7 ok, 1 not ok, 2 already there in ")
    assert len(lines) == 1 + 8 + 1 + 1
    assert "\x1b" not in out.getvalue()


def test_a_line_says_the_metric_that_decides_and_the_rules_that_doubt_it(make, monkeypatch):
    monkeypatch.setattr(
        "orchestrator.report.show.live._headline", lambda task: ("absent_s", "tpot_s")
    )
    out = io.StringIO()
    plan = make.plan(quants=("fp32",), prompts=(512, 1024))
    rules = (RuleResult("low_samples", "flagged", 8.0, 20.0),)
    with LiveView(Console(file=out), total=2, labels=labels_of(plan)) as view:
        view.finished(make.report(plan.trials[0], verdict="flagged", rules=rules), plan.trials[0])
    line = out.getvalue().splitlines()[1]
    assert "TPOT 61." in line
    assert line.endswith("ms  (flagged: low_samples)")


def test_what_cannot_be_done_for_one_reason_says_so_once(make):
    out = io.StringIO()
    plan = make.plan()
    cannot, large = (Outcome.INFEASIBLE, "no instructions"), (Outcome.INFEASIBLE, "too large")
    with LiveView(Console(file=out), total=8, labels=labels_of(plan)) as view:
        play(view, make, plan, {0: cannot, 1: cannot, 2: large, 3: large, 5: large})
    ends = [line.split("  ")[-1] for line in out.getvalue().splitlines()[1:9]]
    assert ends[:4] == ["no instructions", "as above", "too large", "as above"]
    assert ends[5] == "as above"


def test_forced_colour_does_not_redraw_a_pipe(make):
    out = io.StringIO()
    plan = make.plan()
    with LiveView(Console(file=out, force_terminal=True), total=8, labels=labels_of(plan)) as view:
        play(view, make, plan, {})
    assert "\x1b[?25l" not in out.getvalue()
    assert "[8/8] ok" in out.getvalue()


def test_the_log_of_a_ci_job_is_not_redrawn(make, monkeypatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    plan = make.plan()
    with LiveView(Console(file=out), total=8, labels=labels_of(plan)) as view:
        play(view, make, plan, {})
    assert "\x1b" not in out.getvalue()
    assert "[8/8] ok" in out.getvalue()


def test_only_its_own_thread_draws_and_the_terminal_is_given_back(make, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("CI", raising=False)
    plan = make.plan()
    console = Console(stderr=True, width=80, height=20)
    view = LiveView(console, total=8, sweep="quant", labels=labels_of(plan)).open()
    print("a library complains", file=sys.stderr)
    callers = [
        threading.Thread(target=play, args=(view, make, plan, {}), name=f"caller-{n}")
        for n in range(3)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    view.close()
    view.close()
    assert terminal.writers == {"live-view"}
    assert sys.stderr is terminal
    text = terminal.getvalue()
    assert text.index("\x1b[?25l") < text.rindex("\x1b[?25h"), "the cursor is shown again"
    assert "a library complains" in text
    assert text.rstrip().splitlines()[-1].find("quant: 24 ok") >= 0


def test_a_broken_pipe_does_not_reach_the_sweep(make):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    plan = make.plan()
    with LiveView(Console(file=Closed()), total=8, labels=labels_of(plan)) as view:
        play(view, make, plan, {})


def test_a_long_silence_is_broken_by_a_heartbeat(make, monkeypatch):
    monkeypatch.setattr("orchestrator.report.show.live.HEARTBEAT_S", 0.01)
    out = io.StringIO()
    plan = make.plan()
    with LiveView(Console(file=out, width=80), total=8, labels=labels_of(plan)) as view:
        trial = plan.trials[0]
        view.submitted(spec_of(trial))
        view.started(spec_of(trial), make.slot())
        view.phase(spec_of(trial), "load")
        deadline = time.monotonic() + 30
        while "… 1 running (fp32 · 512→32, load" not in out.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_an_encoding_without_our_signs_gets_plain_ones(make):
    raw = io.BytesIO()
    use_plain_signs()
    out = io.TextIOWrapper(raw, encoding="ascii", errors=HANDLER)
    plan = make.plan()
    with LiveView(Console(file=out), total=8, labels=labels_of(plan)) as view:
        play(view, make, plan, {})
    out.flush()
    assert b"fp32 | 512>32" in raw.getvalue()


@pytest.mark.parametrize("width", [40, 60, 79, 100, 200])
@pytest.mark.parametrize("height", [3, 10, 24])
@pytest.mark.parametrize("running", [0, 1, 3, 60])
def test_the_board_fits_whatever_terminal(make, width, height, running):
    board = board_of(make, running=running, finished=6, bad=5)
    lines = draw(board, 700.0, width=width, height=height).plain.split("\n")
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width


def test_the_board_says_who_runs_where_and_what_failed(make):
    board = board_of(make, running=3, finished=4, waiting=5, bad=1)
    text = draw(board, 75.0, width=100, height=24).plain
    lines = text.split("\n")
    assert "6/14" in lines[0]
    assert "ETA" in lines[0]
    assert lines[1] == "3 ok · 1 failed · 3 running · 5 waiting · 2 cached"
    assert lines[2].split() == ["node-0", "cpu", "0-1", "fp32", "·", "5→32", "decode", "35", "s"]
    assert lines[5].startswith("✗ oom_host  fp32 · 1→32  killed")
    assert lines[5].endswith("…")


def test_slots_beyond_the_screen_are_counted(make):
    lines = draw(board_of(make, running=60), 700.0, width=100, height=12).plain.split("\n")
    assert sum("decode" in line for line in lines) == 8
    assert "  … and 52 more running" in lines


def test_three_thousand_trials_are_a_few_counters(make):
    board = board_of(make, running=16, finished=2000, waiting=1000, bad=100)
    text = draw(board, 30_000.0, width=60, height=18).plain
    assert "1900 ok · 100 failed · 16 running" in text
    assert len(board.problems) <= 50


def test_what_ails_the_machine_is_counted_and_said(make):
    board = Board("quant", 100)
    plan = make.plan(prompts=tuple(range(1, 10)))
    heat = RuleResult("thermal_slowdown", "invalid", 0.8, 0.0, "clocks were cut for heat")
    steal = RuleResult("steal", "flagged", 0.08, 0.05, "the hypervisor took 0.08 of the cores")
    wide = RuleResult("bimodal", "flagged", 1, 0)
    for at, trial in enumerate(plan.trials[:5]):
        rules = (heat, wide) if at < 3 else (steal, wide)
        board.finish(make.report(trial, verdict="flagged", rules=rules), "x", 1.0)
    lines = draw(board, 10.0, width=100, height=24).plain.split("\n")
    assert lines[2] == "! thermal_slowdown  3 attempts  node-1 cpu 0-1: clocks were cut for heat"
    assert lines[3].startswith("! steal  2 attempts  node-1")
    assert "bimodal" not in "".join(lines), "says something of the samples, not the machine"
    low = draw(board, 10.0, width=100, height=8).plain
    assert "thermal_slowdown" in low
    assert "steal" not in low


def test_what_is_made_once_is_no_part_of_a_trial_s_time(make):
    board, report = Board("quant", 1), make.report(make.plan().trials[0])
    report.phases = [
        Phase("quality", 0, int(9e9)),
        Phase("reference", int(1e9), int(5e9)),
        Phase("convert", int(2e9), int(3e9)),
        Phase("convert", int(7e9), int(8e9)),
        Phase("compiler", int(9e9), None),
    ]
    board.start(report.attempt_id, "fp32", make.slot(), 100.0)
    assert board.finish(report, "fp32", 112.0) == pytest.approx(7.0)
    assert board.durations_s == [pytest.approx(7.0)]


def test_a_cluster_that_is_not_there_yet_is_said(make):
    board = Board("quant", total=8)
    assert "8 waiting · starting the cluster" in draw(board, 3.0, width=80, height=10).plain
    board.submit("a1")
    assert "starting" not in draw(board, 3.0, width=80, height=10).plain


def test_counts_that_do_not_fit_go_on_below(make):
    board = board_of(make, running=16, finished=2000, waiting=1000, bad=100)
    lines = draw(board, 30_000.0, width=40, height=18).plain.split("\n")
    assert "1900 ok · 100 failed · 16 running" in lines
    assert "1000 waiting · 2 cached" in lines


def test_the_first_estimate_rests_on_earlier_runs(make):
    board = Board("s", total=10, history_s=[10.0] * 20)
    assert board.remaining_s(0.0) == pytest.approx((100.0, 100.0), abs=1.0)
    plan = make.plan(prompts=(1, 2, 3))
    for at, trial in enumerate(plan.trials[:3]):
        report = make.report(trial)
        board.start(report.attempt_id, "x", make.slot(), 0.0)
        board.finish(report, "x", 100.0)
        low, high = board.remaining_s(0.0)
        # Three of its own outweigh what was.
        assert (low > 600) == (at == 2), (low, high)


def test_a_retry_makes_the_sweep_longer_not_negative(make):
    plan = make.plan(quants=("fp32",), prompts=(512, 1024))
    board = Board("s", total=2)
    for number in (1, 2, 3):
        board.submit(f"a-{number}")
        board.start(f"a-{number}", "x", make.slot(), 0.0)
        report = make.report(plan.trials[0], outcome=Outcome.LOST, reason="node died")
        report.attempt_id = f"a-{number}"
        board.finish(report, "x", 1.0)
    assert (board.todo, board.finished, board.waiting) == (3, 3, 0)


def test_a_slot_is_named_by_what_it_holds():
    assert core_ranges((0, 1, 2, 8, 10, 11)) == "0-2,8,10-11"
    gpu = Slot("n", "h", (0,), gpu_uuids=("GPU-1a2b3c4d-5e6f",))
    assert device_of(gpu) == "GPU 1a2b3c4d"
    assert device_of(Slot("n", "h", (0, 1), gpu_uuids=("GPU-1", "GPU-2"))) == "2 GPUs"
    assert device_of(Slot("n", "h", (4, 5, 6, 7))) == "cpu 4-7"
