"""Environments: locks that do not drift, built once and whole, and attempts that run in them.

The index is a directory of wheels made here; uv, its resolver and its installer are the real ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import Outcome
from orchestrator.environments.build import built, code_directory, is_built, place_of
from orchestrator.environments.lock import locked, request_of, why_unresolved
from orchestrator.environments.uv import reason_in
from orchestrator.errors import ConfigError, Infeasible, InputError
from orchestrator.isolate.isolation import Isolation
from orchestrator.plan.expand import build
from testing.commands import orchestrator
from testing.planted import only_wheels, wheel
from testing.trial import make_identity, run_attempt

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# A task that says what it sees: its Python, a package that the driver has too, the import path.
SEES = """
import sys
import psutil
from dataclasses import dataclass
from orchestrator.measure import Task

@dataclass
class Config:
    name: str = "sees"

def run(identity, recorder):
    recorder.fact("psutil", psutil.__version__)
    recorder.fact("prefix", sys.prefix)
    recorder.fact("path", sys.path)

TASK = Task("sees", Config, run)
"""


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only packages that there are."""
    directory = only_wheels(tmp_path, monkeypatch)
    for version in ("98.0", "99.0"):
        wheel(directory, "psutil", version, {"psutil.py": f'__version__ = "{version}"\n'})
    entry = "[orchestrator.tasks]\nsees = sees:TASK\n"
    wheel(directory, "sees", "1.0", {"sees.py": SEES}, entry)
    return directory


def asked(*requirements: str, **more: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"python": None, "overrides": [], "pins": {}, "file": None}
    return {**plain, "requirements": list(requirements), **more}


@pytest.fixture
def options(tmp_path: Path) -> Path:
    """A user's directory of groups with an environment."""
    file = tmp_path / "conf" / "environment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("requirements: [psutil]\n")
    return tmp_path / "conf"


def environments(options: Path, *words: str) -> list[Any]:
    line = ["task=noop", "environment=mine", *words]
    plan = build(line, config_dirs=[options], device_kind=lambda cluster: "cpu")
    return [(trial.identity["environment"], trial.infeasible) for trial in plan.trials]


@pytest.mark.parametrize("content", ["", "python: '3.11'\n", "requirements: []\n"])
def test_an_environment_that_requires_nothing_is_not_taken_for_none(
    options: Path, content: str
) -> None:
    (options / "environment" / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"^environment/mine.yaml: requires no package"):
        environments(options)


def test_what_was_locked_stays_locked(options: Path, index: Path) -> None:
    ((found, _),) = environments(options)
    assert found == {"python": PYTHON, "packages": {"psutil": "99.0"}}
    lock = options / "environment" / "mine.lock"
    assert "psutil==99.0" in lock.read_text()
    # An extra asks for more packages, which are locked by themselves.
    assert locked(asked("psutil[fast]")) == found
    # A newer release, and no network: neither changes what the lock says.
    wheel(index, "psutil", "100.0", {"psutil.py": ""})
    planned_anew(options)
    lock.unlink()
    assert planned_anew(options)["packages"] == {"psutil": "100.0"}
    (options / "environment" / "mine.yaml").write_text('requirements: ["psutil<99"]\n')
    assert planned_anew(options)["packages"] == {"psutil": "98.0"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            "<<<<<<< mine\npsutil==99.0\n",
            "mine.lock:4: '<<<<<<< mine' is no package and its version",
        ),
        ("psutil==99.0\npsutil==98.0\n", "mine.lock:5: 'psutil==98.0' is there twice"),
        ("psutil>=98.0\n", "mine.lock:4: 'psutil>=98.0' is no package and its version"),
        ("psutil==newest\n", "mine.lock:4: 'psutil==newest' is no package and its version"),
    ],
)
def test_a_lock_that_was_changed_by_hand_is_not_guessed(
    options: Path, changed: str, said: str
) -> None:
    request = request_of(asked("psutil"))
    assert request is not None
    lock = options / "environment" / "mine.lock"
    lock.write_text(f"# Python: {PYTHON}\n\n# asked: {request.key}\n{changed}")
    with pytest.raises(ConfigError) as caught:
        locked(asked("psutil", file=str(lock.with_suffix(".yaml"))))
    assert said in str(caught.value)
    assert str(caught.value).endswith("Delete the file to resolve it again")


@pytest.mark.parametrize(
    "line", ["psutil ==", "-r wanted.txt", "-e .", "", "psutil\n--index-url x"]
)
@pytest.mark.parametrize("group", ["requirements", "overrides"])
def test_what_is_no_requirement_is_said_before_anything_is_asked(line: str, group: str) -> None:
    wanted = asked("psutil")
    wanted[group] = [*wanted[group], line]
    with pytest.raises(ConfigError, match=f"^environment.{group}: .* is no requirement") as caught:
        locked(wanted)
    assert "\n" not in str(caught.value)


def test_a_package_asked_for_with_extras_is_locked_too() -> None:
    assert locked(asked("psutil[fast]", "sees")) == {
        "python": PYTHON,
        "packages": {"psutil": "99.0", "sees": "1.0"},
    }


def test_what_is_no_release_is_said(index: Path) -> None:
    address = f"sees @ file://{index}/sees-1.0-py3-none-any.whl"
    found = locked(asked(address))
    assert found is not None
    assert "packages" not in found
    assert why_unresolved(found) == f"no such environment: no released version: {address}"


def test_an_index_that_does_not_answer_makes_nothing_infeasible(
    index: Path, dead_index: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^environment: cannot be resolved now: .*{dead_index}"):
        locked(asked("psutil", "nosuch"))


def test_the_lock_of_another_python_is_left_to_others(options: Path) -> None:
    lock = options / "environment" / "mine.lock"
    shared = "# Python: 3.1\n# asked: of another Python\npsutil==98.0\n"
    lock.write_text(shared)
    assert planned_anew(options) == {"python": PYTHON, "packages": {"psutil": "99.0"}}
    assert lock.read_text() == shared
    assert planned_anew(options)["packages"] == {"psutil": "99.0"}


def planned_anew(options: Path) -> dict[str, Any]:
    """What a new process plans; it remembers nothing."""
    words = ["plan", "task=noop", "environment=mine", "--config-dir", str(options), "--json"]
    answer = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words], capture_output=True, text=True, check=True
    )
    (trial,) = json.loads(answer.stdout)["trials"]
    found: dict[str, Any] = trial["config"]["environment"]
    return found


def test_pins_are_an_axis_of_text(options: Path) -> None:
    found = environments(options, "environment.pins.psutil=98.0,99.0,97.0")
    assert [each[0].get("packages") for each in found] == [
        {"psutil": "98.0"},
        {"psutil": "99.0"},
        None,
    ]
    assert "no version of psutil==97.0" in found[2][1].replace("97.0.0", "97.0")
    assert not (options / "environment" / "mine.lock").exists()  # that is of the file alone
    assert environments(options, 'environment.pins={psutil:"98.0"}') == found[:1]


def test_a_pin_of_what_is_not_there_is_infeasible(options: Path) -> None:
    ((found, reason),) = environments(options, "environment.pins.nosuch=1.0")
    assert "packages" not in found
    assert reason == "no such environment: nosuch is not among its packages: psutil"
    assert why_unresolved(found) == reason


@pytest.mark.parametrize("pin", ["99", "99.0.0", "v99.0"])
def test_a_pin_may_be_written_as_versions_are(options: Path, pin: str) -> None:
    ((found, reason),) = environments(options, f"environment.pins.psutil={pin}")
    assert found.get("packages") == {"psutil": "99.0"}, reason


@pytest.mark.parametrize("pin", ["''", "true", "latest", "'>=4'", "'9.*'"])
def test_a_pin_that_is_no_version_is_one_line(options: Path, pin: str) -> None:
    with pytest.raises(ConfigError, match="is no version") as refused:
        environments(options, f"environment.pins.psutil={pin}")
    assert "\n" not in str(refused.value)
    assert refused.value.where == "environment.pins.psutil"


def test_pins_without_an_environment_have_no_effect() -> None:
    with pytest.raises(ConfigError, match=r"environment\.pins: has no effect without"):
        build(["task=noop", "environment.pins.psutil=1"], device_kind=lambda cluster: "cpu")
    with pytest.raises(ConfigError, match="no version of Python"):
        locked(asked("psutil", python="three"))


def test_a_task_whose_packages_are_missing_is_infeasible(options: Path) -> None:
    words = ["task=inference", "model=random_tiny", "environment=mine"]
    (trial,) = build(words, config_dirs=[options], device_kind=lambda cluster: "cpu").trials
    assert trial.infeasible == "its environment has no torch"


def in_environment(**changes: Any) -> dict[str, Any]:
    found = locked(asked("psutil<99", "sees"))
    identity = make_identity(task="noop")
    return {**identity, "task": {"name": "sees"}, "environment": found, **changes}


def test_an_attempt_sees_its_environment_and_our_code_alone() -> None:
    import psutil

    identity = in_environment()
    with Isolation() as isolation:
        report = run_attempt(isolation, identity)
        assert report.outcome is Outcome.OK, report.reason
        again = run_attempt(isolation, identity)
    assert report.facts["psutil"] == "98.0" != psutil.__version__
    place = place_of(identity["environment"])
    assert Path(report.facts["prefix"]).resolve() == place.resolve()
    beyond = [p for p in report.facts["path"] if p and not p.startswith(str(place))]
    assert str(code_directory()) in beyond
    assert not [p for p in beyond if "site-packages" in p]
    assert [p.name for p in code_directory().iterdir()] == ["orchestrator"]
    # Built in a phase of its own, once; the second attempt is a fork of the same server.
    assert [phase.name for phase in report.phases][:1] == ["environment"]
    assert "environment" not in [phase.name for phase in again.phases]
    assert again.facts["isolate"]["server_pid"] == report.facts["isolate"]["server_pid"]


def test_a_supervisor_keeps_a_server_for_each_environment() -> None:
    ours = make_identity(task="noop")
    theirs = in_environment()
    with Isolation(preload=()) as isolation:
        pids = [
            run_attempt(isolation, identity).facts["isolate"]["server_pid"]
            for identity in (ours, theirs, ours, theirs)
        ]
    assert pids[:2] == pids[2:]
    assert pids[0] != pids[1]


def test_what_cannot_be_built_is_one_line(index: Path) -> None:
    environment = {"python": PYTHON, "packages": {"psutil": "42.0"}}
    with pytest.raises(Infeasible, match=r"cannot be built: .*psutil==42\.0"):
        built(environment)
    assert not is_built(environment)
    report = run_isolated(in_environment(environment=environment))
    assert report.outcome is Outcome.INFEASIBLE
    assert "this environment cannot be built" in str(report.reason)
    assert "UV_FIND_LINKS" in str(report.reason)


def run_isolated(identity: dict[str, Any]) -> Any:
    with Isolation(preload=()) as isolation:
        return run_attempt(isolation, identity)


def test_a_full_disk_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "uv-of-a-full-disk"
    program.write_text(
        "#!/bin/sh\necho 'error: failed to copy: No space left on device' >&2\nexit 2\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr("orchestrator.environments.uv.find_uv", lambda: str(program))
    with pytest.raises(InputError, match=r"no space left.*GiB free"):
        built({"python": PYTHON, "packages": {"psutil": "99.0"}})


def test_two_processes_build_one() -> None:
    environment = {"python": PYTHON, "packages": {"psutil": "99.0"}}
    code = f"from orchestrator.environments.build import built; built({environment!r})"
    workers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert [p.name for p in place_of(environment).parent.iterdir()] == [place_of(environment).name]


def test_a_build_that_was_killed_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed once it has begun: what it made is taken away by the next, which builds it whole."""
    environment = {"python": PYTHON, "packages": {"psutil": "99.0"}}
    slow = tmp_path / "slow"
    fifo = tmp_path / "begun"
    os.mkfifo(fifo)
    slow.write_text(f'#!/bin/sh\nmkdir -p "$6"\necho > {fifo}\nexec sleep 600\n')
    slow.chmod(0o755)
    code = (
        "import sys; from orchestrator.environments import build, uv;"
        f"uv.find_uv = lambda: {str(slow)!r};"
        f"build.built({environment!r})"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    fifo.read_text()
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    assert not is_built(environment)
    assert list(place_of(environment).parent.iterdir())  # what it left
    assert built(environment).exists()
    assert [p.name for p in place_of(environment).parent.iterdir()] == [place_of(environment).name]


def test_conditions_are_of_the_environment(options: Path) -> None:
    from orchestrator.attempt import Slot
    from orchestrator.schedule.surroundings import Surroundings

    identity = in_environment(task={"name": "attention"})
    identity["environment"] = {"python": "3.10", "packages": {"torch": "2.4.1"}}
    slot = Slot("local", "here", (0,))
    software = Surroundings([]).of(identity, slot).software
    assert (software["python"], software["torch"]) == ("3.10", "2.4.1")


def test_a_plan_says_what_an_evaluation_needs(tmp_path: Path) -> None:
    words = ("plan", "task=quality", "device=cpu", "quant=fp32,bf16")
    assert "environment of" not in orchestrator(tmp_path, *words).err
    evaluated = orchestrator(tmp_path, *words, "task.evaluate=lm_eval:arc_easy").err
    assert evaluated.count("environment of Python") == 1


def test_a_harness_of_another_version_makes_what_it_counted_stale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from orchestrator.attempt import Slot
    from orchestrator.conditions import difference, same
    from orchestrator.plan import lm_eval
    from orchestrator.schedule.surroundings import Surroundings

    def now(evaluate: str) -> Any:
        identity = make_identity(task="quality", tokens=16, evaluate=evaluate)
        return Surroundings([]).of(identity, Slot("local", "here", (0,)))

    shipped = Path("conf/environment/lm_eval.lock").read_text()
    before = now("lm_eval:arc_easy")
    assert f"lm-eval=={before.software['lm-eval']}\n" in shipped
    assert "lm-eval" not in now("").software
    later = {"packages": {"lm-eval": "9.9"}}
    monkeypatch.setattr(lm_eval, "harness_environment", lambda: later)
    after = now("lm_eval:arc_easy")
    assert not same(before.ids, after.ids)
    assert difference(before, after) == f"lm-eval {before.software['lm-eval']} → 9.9"
    assert same(before.ids | {"software": ""}, after.ids | {"software": ""})


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "  × No solution found when resolving dependencies:\n"
            "  ╰─▶ Because there is no version of a==1\n      and you require a==1, no.\n",
            "Because there is no version of a==1 and you require a==1, no.",
        ),
        ("Using Python 3.11\nerror: Failed to fetch\n", "Failed to fetch"),
        ("", "uv failed without a word"),
    ],
)
def test_uvs_reason_is_one_line(said: str, reason: str) -> None:
    assert reason_in(said) == reason


def test_the_cache_is_shown_and_pruned(tmp_path: Path) -> None:
    built({"python": PYTHON, "packages": {"psutil": "99.0"}})
    found = orchestrator(tmp_path, "cache", "--json").json
    (kind,) = [each for each in found["kinds"] if each["kind"] == "environments"]
    assert kind["entries"] == 1
    assert kind["bytes"] > 0
    answer = orchestrator(tmp_path, "cache", "--prune", "environments")
    assert "removed 1 item of environments" in answer.err
    assert not is_built({"python": PYTHON, "packages": {"psutil": "99.0"}})
    assert orchestrator(tmp_path, "cache", "--prune", "nothing").code == 2
