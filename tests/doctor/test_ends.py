"""Doctors that are stopped or killed: nothing is left, or what the next one knows to remove."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import doctors
import runs


def stopped(volume, process, signum):
    """Stop a doctor; nothing is left of it."""
    process.send_signal(signum)
    result = doctors.finish(process)
    assert result.code in (128 + signum, -signum), result
    assert "Traceback" not in result.err, result
    assert os.listdir(volume) == []
    runs.eventually(lambda: runs.processes(str(volume)) == [])  # what it killed may take a moment


@pytest.mark.parametrize("delay", [0.1, 0.2, 0.3])
def test_a_doctor_that_is_stopped_while_it_starts_leaves_nothing(tmp_path, delay):
    process = doctors.start(tmp_path)
    time.sleep(delay)
    stopped(tmp_path, process, signal.SIGTERM)


@pytest.mark.parametrize(
    ("name", "signum"),
    [
        *(
            (name, signal.SIGTERM)
            for name in ("", "alone", "alone/published", "alone/lock", "card")
        ),
        ("alone/target", signal.SIGINT),
    ],
)
def test_a_doctor_that_is_stopped_while_it_works_leaves_nothing(tmp_path, name, signum):
    process = doctors.start(tmp_path, "--join")
    runs.eventually(lambda: list(tmp_path.glob(f"v1/doctor/*/{name}")), timeout=60)
    stopped(tmp_path, process, signum)


def test_a_doctor_that_was_killed_is_told_of_by_the_next(tmp_path):
    process = doctors.start(tmp_path, "--join")
    (left,) = runs.eventually(lambda: doctors.waits(tmp_path), timeout=60)
    doctors.kill(process, tmp_path)
    result = doctors.examine(tmp_path)
    finding = doctors.found(result)["leftovers"]
    assert (result.code, finding["verdict"]) == (0, "warn")
    assert os.path.basename(left) in finding["found"]
    _, _, command = finding["hint"].partition("when no other doctor runs: ")
    subprocess.run(["sh", "-c", command], check=True)
    assert "leftovers" not in doctors.found(doctors.examine(tmp_path))


def test_what_killed_doctors_left_long_ago_is_removed_and_the_living_and_the_fresh_stay(tmp_path):
    top = tmp_path / "v1" / "doctor"
    for name, age in (("dead", 4000), ("fresh", 3000)):
        (top / name / "alone").mkdir(parents=True)
        os.utime(top / name, (time.time() - age,) * 2)
    waiting = doctors.start(tmp_path, "--join")
    (alive,) = runs.eventually(lambda: doctors.waits(tmp_path), timeout=60)
    finding = doctors.found(doctors.examine(tmp_path))["leftovers"]
    assert (finding["verdict"], finding["found"][:5]) == ("warn", "2 in ")
    assert sorted(os.listdir(top)) == sorted(["fresh", os.path.basename(alive)])
    waiting.send_signal(signal.SIGTERM)
    assert doctors.finish(waiting).code == 143
    os.utime(top / "fresh", (time.time() - 4000,) * 2)
    finding = doctors.found(doctors.examine(tmp_path))["leftovers"]
    assert (finding["verdict"], finding["found"][:9]) == ("ok", "removed 1")


def test_a_doctor_of_which_only_the_first_process_is_killed_tidies_up(tmp_path):
    process = doctors.start(tmp_path, "--join")
    runs.eventually(lambda: doctors.waits(tmp_path), timeout=60)
    runs.kill(process)
    runs.eventually(lambda: not runs.processes(str(tmp_path)), timeout=60)
    assert os.listdir(tmp_path) == []


def test_a_doctor_whose_working_process_is_killed_says_so_and_gives_no_verdict(tmp_path):
    process = doctors.start(tmp_path, "--join")
    runs.eventually(lambda: doctors.waits(tmp_path), timeout=60)
    (worker,) = set(runs.processes(str(tmp_path))) - {process.pid}
    os.kill(worker, signal.SIGKILL)
    result = doctors.finish(process)
    assert (result.code, result.out) == (128 + signal.SIGKILL, "")
    assert "SIGKILL" in result.err


def test_children_do_not_outlive_a_doctor_that_is_killed(tmp_path):
    process = doctors.start(tmp_path)
    # They have its private directory among their words.
    runs.eventually(lambda: runs.processes(f"{tmp_path}/v1/doctor/"), timeout=60)
    doctors.kill(process, tmp_path)
    runs.eventually(lambda: not runs.processes(str(tmp_path)), timeout=60)
