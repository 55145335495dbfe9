"""The suite's runner: each test runs once; a second try is for few, is by itself, and is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).parent / "suite.py"
ONCE = "import os\ndef test_once(): assert os.path.exists('seen') or open('seen', 'w').close()\n"


def ran(top, *texts):
    """The status of a suite of such files in two lanes, and its output."""
    names = [f"test_{number}.py" for number, _ in enumerate(texts)]
    for name, text in zip(names, texts, strict=True):
        (top / name).write_text(text)
    argv = [sys.executable, RUNNER, "-q", *names]
    env = os.environ | {"LANES": "2", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(argv, cwd=top, capture_output=True, text=True, timeout=300, env=env)
    return done.returncode, done.stdout


def test_what_passes_by_itself_passes_and_is_named(tmp_path):
    status, said = ran(tmp_path, ONCE + "def test_other(): pass\n")
    assert status == 0
    assert said.splitlines()[-1].startswith("FLAKY: ")
    assert "test_0.py::test_once" in said.splitlines()[-1]
    assert ran(tmp_path, ONCE)[1].count("FLAKY") == 0, "the second suite has nothing to tell"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def test_never(): assert 0\n", 1),
        (ONCE + "def test_never(): assert 0\n", 1),
        ("".join(f"def test_{n}(): assert 0\n" for n in range(4)), 1),
        ("import nothing_of_this_name\n", 2),
        ("", 5),
        ("def test_it(): pass\n", 0),
    ],
)
def test_everything_else_is_what_pytest_says(tmp_path, text, expected):
    status, said = ran(tmp_path, text)
    assert status == expected, said
    assert "FLAKY" not in said


def test_many_failures_are_not_tried_again(tmp_path):
    text = "".join(ONCE.replace("once", f"{n}").replace("seen", f"seen-{n}") for n in range(4))
    assert ran(tmp_path, text)[0] == 1


def test_each_test_runs_in_one_lane_and_its_cost_is_told(tmp_path):
    text = "import os, pytest\n@pytest.mark.parametrize('n', range(9))\n"
    text += "def test_it(n): os.close(os.open(f'{__name__}-{n}', os.O_CREAT | os.O_EXCL))\n"
    status, said = ran(tmp_path, *[text] * 5)
    assert status == 0, said
    assert len(list(tmp_path.glob("test_?-?"))) == 45
    assert "     45 " in said
    assert "      9 test_4.py" in said


def test_what_no_lane_has_run_is_no_success(tmp_path):
    status, said = ran(tmp_path, "import os\ndef test_it(): os._exit(0)\n")
    assert status == 1
    assert said.splitlines()[-1] == "1 lanes did not tell; not run: ['test_0.py::test_it']"
