"""The suite's runner: a second try is for few, is by itself, and is told."""

import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).parent / "suite.py"
ONCE = "import os\ndef test_once(): assert os.path.exists('seen') or open('seen', 'w').close()\n"


def ran(top, text):
    """The status of a suite of one file, and its output."""
    (top / "test_it.py").write_text(text)
    argv = [sys.executable, RUNNER, "it", "-q", "test_it.py"]
    done = subprocess.run(argv, cwd=top, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


def test_what_passes_by_itself_passes_and_is_named(tmp_path):
    status, said = ran(tmp_path, ONCE + "def test_other(): pass\n")
    assert status == 0
    assert said.splitlines()[-1].startswith("FLAKY: ")
    assert "test_it.py::test_once" in said.splitlines()[-1]
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
