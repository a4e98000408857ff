"""What a load sends and when: arrivals, lengths and prompts, out of a seed."""

from __future__ import annotations

import json
import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.measure import InputError
from orchestrator.tasks.serving.prompt_file import Line, read_lines
from orchestrator.tasks.serving.prompts import Prompts
from orchestrator.tasks.serving.stimulus import (
    COOL_DOWN_S,
    TRACE_BLOCK,
    Shape,
    lead_s,
    limits,
    shapes,
)
from testing.seeds import drawing_seed
from testing.trial import make_load

SEED = drawing_seed()
SEEDS = st.integers(0, 2**32)


def load(kind: str = "open", **options: Any) -> dict[str, Any]:
    return make_load(kind, **options)


def due(asked: dict[str, Any], seed: int = SEED) -> list[float]:
    return [shape.due_s for shape in shapes(asked, 8, 8, seed) if shape.due_s is not None]


def gaps(asked: dict[str, Any]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(due(asked))]


def test_constant_arrivals_are_a_gap_apart() -> None:
    found = gaps(load(rate=20.0, arrivals="constant", requests=50))
    assert found == pytest.approx([0.05] * len(found))


@pytest.mark.parametrize(
    ("options", "variation"),
    [
        ({"arrivals": "poisson"}, 1.0),
        ({"arrivals": "gamma", "burstiness": 0.25}, 0.25),
        ({"arrivals": "gamma", "burstiness": 2.0}, 2.0),
    ],
)
def test_gaps_have_the_rate_and_the_variation_that_were_asked_for(
    options: dict[str, Any], variation: float
) -> None:
    count = 20_000
    found = gaps(load(rate=50.0, requests=count // 2, warmup_s=0.0, **options))[:count]
    # Five standard errors of a gamma's mean; its deviation's is known less exactly.
    mean = statistics.mean(found)
    assert mean == pytest.approx(0.02, rel=5 * variation / math.sqrt(len(found)))
    spread = statistics.stdev(found) / mean
    assert spread == pytest.approx(variation, rel=0.1 * max(1.0, variation))
    # Nothing of one gap is in the next.
    assert abs(statistics.correlation(found[:-1], found[1:])) < 5 / math.sqrt(len(found))


def test_poisson_gaps_are_exponential() -> None:
    found = sorted(gaps(load(rate=50.0, requests=5000, warmup_s=0.0)))
    away = max(
        abs((place + 0.5) / len(found) - (1 - math.exp(-50 * gap)))
        for place, gap in enumerate(found)
    )
    assert away < 1.95 / math.sqrt(len(found))  # Kolmogorov's at one in a thousand


def test_a_ramp_brings_half_of_what_the_rate_would_and_then_the_rate() -> None:
    asked = load(rate=100.0, arrivals="constant", ramp_s=4.0, warmup_s=1.0, requests=100)
    found = due(asked)
    for until_s in (1.0, 2.0, 4.0):
        came = sum(at < until_s - 1e-9 for at in found)
        assert came == pytest.approx(100 * until_s**2 / 8, abs=1)
    assert sum(4.0 <= at < 5.0 for at in found) == pytest.approx(100, abs=1)
    assert found == sorted(found)


@given(
    rate=st.floats(0.5, 20),
    requests=st.none() | st.integers(1, 50),
    duration_s=st.none() | st.floats(0.5, 5),
    burstiness=st.sampled_from([None, 0.05, 3.0, 20.0]),
    ramp_s=st.sampled_from([0.0, 3.0]),
    seed=SEEDS,
)
def test_enough_is_due_to_measure_and_as_long_after_it(
    rate: float,
    requests: int | None,
    duration_s: float | None,
    burstiness: float | None,
    ramp_s: float,
    seed: int,
) -> None:
    arrivals = {"arrivals": "poisson" if burstiness is None else "gamma", "burstiness": burstiness}
    asked = load(rate=rate, requests=requests, duration_s=duration_s, ramp_s=ramp_s, **arrivals)
    try:
        found = due(asked, seed)
    except InputError:
        # Chance, where so little is measured.
        if duration_s is None:
            raise
        return
    requests, duration_s = limits(asked)
    begin_s = lead_s(asked)
    after = [at for at in found if at >= begin_s]
    ends = [] if duration_s is None else [begin_s + duration_s]
    if requests is not None and len(after) > requests:
        ends.append(after[requests])
    end_s = min(ends)
    assert max(found, default=0.0) <= end_s + min(end_s - begin_s, COOL_DOWN_S)
    if end_s != begin_s + (duration_s or -1):
        assert sum(begin_s <= at <= end_s for at in found) > (requests or 0)


@given(spread=st.floats(0.1, 1.0), kind=st.sampled_from(["normal", "lognormal"]), seed=SEEDS)
def test_lengths_keep_their_mean(spread: float, kind: str, seed: int) -> None:
    asked = load(rate=50.0, requests=200, warmup_s=0.0, lengths=kind, spread=spread)
    found = [shape.prompt_tokens for shape in shapes(asked, 200, 8, seed)]
    assert min(found) >= 1
    assert statistics.mean(found) == pytest.approx(200, rel=6 * spread / math.sqrt(len(found)))
    if kind == "lognormal" or spread < 0.3:
        assert statistics.stdev(found) == pytest.approx(200 * spread, rel=0.6)


def test_fixed_lengths_are() -> None:
    assert {(s.prompt_tokens, s.new_tokens) for s in shapes(load(), 33, 5, SEED)} == {(33, 5)}


@given(seed=SEEDS)
def test_the_same_seed_makes_the_same_plan_and_lengths_do_not_move_arrivals(seed: int) -> None:
    asked = load(rate=5.0, requests=20)
    spread = {**asked, "lengths": "lognormal", "spread": 0.7}
    assert shapes(spread, 30, 7, seed) == shapes(spread, 30, 7, seed)
    assert due(spread, seed) == due(asked, seed)
    assert due(asked, seed) != due(asked, seed + 1)


def test_users_of_a_closed_loop_have_more_requests_than_are_measured() -> None:
    planned = shapes(load("closed", concurrency=7, requests=400), 8, 8, SEED)
    assert len(planned) == 807
    assert {shape.due_s for shape in planned} == {None}


@given(turns=st.integers(2, 5), seed=SEEDS)
def test_turns_are_requests_of_a_conversation_and_do_not_move_when_it_begins(
    turns: int, seed: int
) -> None:
    asked = load(rate=5.0, requests=20, lengths="normal", spread=0.3)
    talks = shapes({**asked, "turns": turns}, 30, 7, seed)
    assert [talk.due_s for talk in talks] == due(asked, seed)
    assert {len(talk.turns) for talk in talks} == {turns}
    # Drawn one after the other, so no two turns are the same by design.
    flat = [(turn.prompt_tokens, turn.new_tokens) for talk in talks for turn in talk.turns]
    more = shapes({**asked, "requests": 20 * turns}, 30, 7, seed)
    alone = [(shape.prompt_tokens, shape.new_tokens) for shape in more]
    shorter = min(len(flat), len(alone))
    assert flat[:shorter] == alone[:shorter]


def test_each_turns_prompt_is_all_that_was_before_and_more() -> None:
    talk = Shape(None, 5, 3, then=(Shape(None, 4, 2), Shape(None, 6, 9)))
    assert talk.tokens == 29
    prompts = Prompts(range(10**9), SEED, longest=None)
    first, second, third = prompts.turns(talk)
    assert [len(first), len(second), len(third)] == [5, 5 + 3 + 4, 12 + 2 + 6]
    assert (second[:5], third[:12]) == (first, second)
    other = next(prompts.turns(talk))
    assert other[0] != first[0]


LINES = [Line(1, "a", 5), Line(2, "bb"), Line(3, "ccc", 7)]


def test_lines_of_a_file_come_again_and_again_in_an_order_that_is_drawn() -> None:
    asked = load("closed", requests=400)
    found = shapes(asked, 64, 9, SEED, LINES)
    order = [shape.line for shape in found]
    assert sorted(order[:3], key=str) == LINES
    assert order[3:] == order[:-3]
    assert {(s.line, s.prompt_tokens, s.new_tokens) for s in found} == {
        (line, 64, line.new_tokens or 9) for line in LINES
    }
    orders = {tuple(s.line for s in shapes(asked, 64, 9, seed, LINES)[:3]) for seed in range(40)}
    assert len(orders) == 6


def test_a_file_of_prompts_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "é", "new_tokens": 3}\n\n{"prompt": "two\\nlines"}\n')
    assert read_lines(str(file)) == [Line(1, "é", 3), Line(3, "two\nlines")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no request: "),
        ("3", "line 2 is no request: it is no object"),
        ("{}", "line 2 is no request: it has no text as its prompt"),
        ('{"prompt": ""}', "line 2 is no request: it has no text as its prompt"),
        ('{"prompt": "a", "new_token": 3}', "line 2 is no request: unknown key new_token"),
        ('{"prompt": "a", "new_tokens": 0}', "line 2 is no request: new_tokens=0 is no number"),
        ('{"prompt": "a", "new_tokens": true}', "new_tokens=True is no number"),
        ('{"prompt": "a", "new_tokens": null}', "new_tokens=None is no number"),
        ('{"prompt": "a\\ud800"}', "line 2 is no request: .*surrogates not allowed"),
        ("[" * 100_000, "line 2 is no request: .*recursion"),
    ],
)
def test_a_bad_line_of_a_file_of_prompts_is_named(line: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(InputError, match=said) as caught:
        read_lines(str(file))
    assert f"task.prompt={file}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"), [(b"\n", "has no prompt"), (b"\xff", "cannot be read")]
)
def test_a_file_without_prompts(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    with pytest.raises(InputError, match="cannot be read"):
        read_lines(str(file))
    file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_lines(str(file))


def test_the_mark_that_some_editors_begin_a_file_with_is_no_part_of_it(tmp_path: Path) -> None:
    prompts, trace = tmp_path / "prompts.jsonl", tmp_path / "trace"
    prompts.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n')
    assert read_lines(str(prompts)) == [Line(1, "a")]
    trace.write_bytes(b"\xef\xbb\xbf" + json.dumps(row(0)).encode() + b"\r\n")
    assert len(shapes(load("trace", trace=str(trace), warmup_s=-1.0), 1, 1, SEED)) == 1


@pytest.mark.parametrize(
    "asked",
    [
        load("closed", concurrency=10**9),
        load("closed", concurrency=1, requests=10**12),
        load("closed", concurrency=1, requests=10**5, turns=1000),
        load("open", rate=1e300, arrivals="constant"),
        load("open", rate=1.0, arrivals="constant", duration_s=1e300),
    ],
)
def test_more_requests_than_fit_in_memory_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="load: has more than 1,000,000 requests to plan"):
        shapes(asked, 8, 8, SEED)


TEXT = list(range(100_000, 100_700))


@given(
    share=st.sampled_from([0.0, 0.1, 0.5, 0.999]),
    lengths=st.lists(st.integers(1, 400), min_size=2, max_size=8),
    text=st.booleans(),
    seed=SEEDS,
)
def test_prompts_begin_alike_for_exactly_the_share(
    share: float, lengths: list[int], text: bool, seed: int
) -> None:
    ids = TEXT if text else range(10**9)
    longest = max(lengths) if text else None
    prompts = Prompts(ids, seed, longest=longest, prefix_share=share)
    made = [prompts.of(Shape(None, length, 1)) for length in lengths]
    assert [len(each) for each in made] == lengths
    for one, other in pairwise(made):
        common = min(round(share * len(each)) for each in (one, other))
        assert one[:common] == other[:common]
        if common < min(len(one), len(other)) and not text:
            assert one[common] != other[common]
    again = Prompts(ids, seed, longest=longest, prefix_share=share)
    assert [again.of(Shape(None, length, 1)) for length in lengths] == made


def write_trace(file: Path, *rows: Any) -> str:
    file.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return str(file)


def row(at_ms: float, prompt: float = 10, new: float = 4, *blocks: int) -> dict[str, Any]:
    hashes = {"hash_ids": list(blocks)} if blocks else {}
    return {"timestamp": at_ms, "input_length": prompt, "output_length": new, **hashes}


def test_a_trace_is_read_line_by_line(tmp_path: Path) -> None:
    file = write_trace(
        tmp_path / "trace", row(5000, 700, 3, 8, 9), "", row(5500, 600, 4, 8, 7), row(8000)
    )
    asked = load("trace", trace=file, warmup_s=0.0, speed=2.0)
    found = shapes(asked, 1, 1, SEED)
    assert [shape.due_s for shape in found] == [0.0, 0.25, 1.5]
    assert [(s.prompt_tokens, s.new_tokens) for s in found] == [(700, 3), (600, 4), (10, 4)]
    prompts = Prompts(range(10**9), SEED, longest=None, prefix_share=0.0)
    first, second, third = (prompts.of(shape) for shape in found)
    assert first[:TRACE_BLOCK] == second[:TRACE_BLOCK]
    assert first[TRACE_BLOCK] != second[TRACE_BLOCK]
    assert [len(first), len(second), len(third)] == [700, 600, 10]


def test_of_a_trace_only_what_is_measured_and_as_long_after_it_is_read(tmp_path: Path) -> None:
    file = write_trace(tmp_path / "trace", *(row(10 * k) for k in range(2000)), "never read")
    asked = load("trace", trace=file, warmup_s=3.0, requests=50)
    assert len(shapes(asked, 1, 1, SEED)) == 300 + 2 * 50 + 1
    asked = load("trace", trace=file, warmup_s=3.0, duration_s=1.0)
    assert len(shapes(asked, 1, 1, SEED)) == 300 + 200 + 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no request"),
        ("3", "line 2 is no request: it is no object"),
        ("\n{", "line 3 is no request"),
        ("[" * 100_000, "line 2 is no request: .*recursion"),
        ({"timestamp": 1}, "line 2 is no request: its input_length is null, no number"),
        (row(1, 0), "line 2 is no request: its input_length is 0, no count of tokens"),
        (row(1, new=2.5), "its output_length is 2.5, no count of tokens"),
        (row(1, 10**12), r"its input_length is 1e\+12, no count of tokens"),
        (row(1, 10**400), "line 2 is no request"),
        (row(1, math.inf), "its input_length is Infinity, no number"),
        (row(1, True), "its input_length is true, no number"),
        (row(-1), "line 2 is no request: earlier than the line before it"),
        (row(math.nan), "line 2 is no request: its timestamp is NaN, no number"),
        (row(math.inf), "line 2 is no request: its timestamp is Infinity, no number"),
        ({**row(1), "hash_ids": 3}, "line 2 is no request"),
        (row(1999), "has no request after 2 s"),
        (row(2000), "due at one moment: they have no rate"),
    ],
)
def test_a_bad_line_of_a_trace_is_named(line: Any, said: str, tmp_path: Path) -> None:
    file = write_trace(tmp_path / "trace", row(0), line)
    with pytest.raises(InputError, match=said):
        shapes(load("trace", trace=file), 1, 1, SEED)


def test_requests_that_are_due_at_one_moment_have_no_rate(tmp_path: Path) -> None:
    file = write_trace(tmp_path / "trace", row(0), row(0), row(0), row(9))
    with pytest.raises(InputError, match="the first 2 requests are due at one moment"):
        shapes(load("trace", trace=file, warmup_s=0.0, requests=2), 1, 1, SEED)
    assert len(shapes(load("trace", trace=file, warmup_s=0.0, requests=3), 1, 1, SEED)) == 4


def test_a_trace_of_one_moment_has_no_rate(tmp_path: Path) -> None:
    for rows in ([row(7)], [row(0), row(0)]):
        asked = load("trace", trace=write_trace(tmp_path / "trace", *rows), warmup_s=0.0)
        with pytest.raises(InputError, match="due at one moment: they have no rate"):
            shapes(asked, 1, 1, SEED)


def test_a_load_in_which_nothing_is_measured_is_refused_before_it_begins(tmp_path: Path) -> None:
    few = load("open", rate=0.01, arrivals="constant", warmup_s=2.0, duration_s=5.0)
    # The first comes before what is measured, the second after it.
    file = write_trace(tmp_path / "trace", row(0), row(8000))
    later = load("trace", trace=file, warmup_s=2.0, duration_s=5.0)
    for asked in (few, later):
        with pytest.raises(InputError, match=r"no request after 2 s, .* and before 7 s"):
            shapes(asked, 1, 1, SEED)


def test_users_who_begin_together_send_more_than_is_measured_at_once() -> None:
    together = {"concurrency": 8, "requests": 7, "warmup_s": 0.0}
    with pytest.raises(InputError, match="8 users begin at one moment: 7 requests have no rate"):
        shapes(load("closed", **together), 1, 1, SEED)
    for change in ({"requests": 8}, {"warmup_s": 0.1}, {"ramp_s": 0.1}):
        assert shapes(load("closed", **{**together, **change}), 1, 1, SEED)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        shapes(load("trace", trace=str(tmp_path / "none")), 1, 1, SEED)
