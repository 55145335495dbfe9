"""A forked worker shares nothing with its parent but two pipes and stderr, and never returns."""

import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from warmer.fill.forked import fork

SECONDS = 30.0


def say(what):
    sys.stdout.flush()
    os.write(1, json.dumps(what).encode())


def look():
    """What a child finds itself with."""
    with open("/proc/self/comm", encoding="ascii") as f:
        name = f.read().strip()
    say(
        {
            "environment": dict(os.environ),
            "numbers": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1],
            "handlers": [signal.getsignal(n) == signal.SIG_DFL for n in (15, 2)],
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            "leads": os.getsid(0) == os.getpid(),
            "name": name,
        }
    )


def test_it_has_what_it_was_given_and_no_more(tmp_path):
    with open(tmp_path / "other", "wb") as other:
        os.set_inheritable(other.fileno(), True)
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            child = fork(look, {"A": "b"})
        finally:
            signal.signal(signal.SIGTERM, before)
        found = json.loads(child.reports.read())
    assert child.wait(SECONDS) == 0
    child.close()
    assert found == {
        "environment": {"A": "b"},
        "numbers": [0, 1, 2],
        "handlers": [True, True],
        "blocked": [],
        "leads": True,
        "name": "warmer worker",
    }


def test_a_lock_of_the_parent_ends_with_the_parents_descriptor(tmp_path):
    with open(tmp_path / "lock", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        child = fork(lambda: (say("up"), os.read(0, 1)), {})
        assert child.reports.read(4) == b'"up"'
    with open(tmp_path / "lock", "wb") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    child.close()
    assert child.wait(SECONDS) == 0


def test_it_hears_that_the_parent_closed_though_others_were_forked_since():
    first = fork(lambda: os.read(0, 1), {})
    second = fork(lambda: os.read(0, 1), {})
    first.close()
    assert first.wait(SECONDS) == 0, "the second holds the first one's orders open"
    second.kill()
    assert second.wait(SECONDS) == -signal.SIGKILL
    second.kill()
    second.close()


def fail():
    raise ZeroDivisionError("in a worker")


def leave():
    sys.exit(0)


@pytest.mark.parametrize("main", [fail, leave])
def test_it_never_runs_on_as_the_parent(main, capfd):
    me = os.getpid()
    child = fork(main, {})
    assert os.getpid() == me
    assert child.wait(SECONDS) == 1
    child.close()
    assert main.__name__ in capfd.readouterr().err


def test_one_that_does_not_end_is_waited_for_no_longer_than_asked():
    child = fork(lambda: os.read(0, 1), {})
    assert child.wait(0.05) is None
    child.kill()
    assert child.wait(SECONDS) == -signal.SIGKILL
    child.close()


# --- jobs side by side ----------------------------------------------------------------------------


JOBS = """
import json, os, sys, threading, time
sys.path[:] = json.loads(sys.argv[1])
from warmer.errors import VolumeError
from warmer.fill import forked
"""


def run(code):
    """What a process with one thread, as pytest's is not sure to be, prints as JSON."""
    argv = [sys.executable, "-c", JOBS + code, json.dumps(sys.path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_jobs_are_done_by_processes_and_answer_in_their_order():
    pids = run("print(json.dumps([os.getpid(), forked.side_by_side([os.getpid, os.getpid])]))")
    assert len({pids[0], *pids[1]}) == 3


@pytest.mark.parametrize("why", ["a second thread", "no more processes"])
def test_or_by_threads_where_no_fork_is_safe_or_to_be_had(why):
    stand_in = "threading.Thread(target=time.sleep, args=(30,), daemon=True).start()"
    if why == "no more processes":
        stand_in = (
            "import resource, errno; real = os.fork; left = [1]\n"
            "def fork():\n"
            "    if not left: raise OSError(errno.EAGAIN, 'no more')\n"
            "    left.pop(); return real()\n"
            "os.fork = fork"
        )
    told = run(
        f"{stand_in}\nprint(json.dumps([os.getpid(), forked.side_by_side([os.getpid] * 3)]))"
    )
    assert told[1] == [told[0]] * 3


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ("raise VolumeError('m', reason='r', hint='h')", ["VolumeError", "m"]),
        (
            "open('/nowhere/at/all')",
            ["FileNotFoundError", "[Errno 2] No such file or directory: '/nowhere/at/all'"],
        ),
        (
            "os.kill(os.getpid(), 9)",
            ["VolumeError", "got a process ended by signal 9, expected it to write files"],
        ),
        ("1 / 0", ["RuntimeError", "ZeroDivisionError"]),
    ],
)
def test_the_first_failure_is_the_callers_and_stops_the_others(job, expected):
    code = f"""
def fails():
    {job}
def waits():
    time.sleep(600)
try:
    forked.side_by_side([waits, fails, waits])
except Exception as exc:
    print(json.dumps([type(exc).__name__, str(exc)]))
"""
    kind, message = run(code)
    assert kind == expected[0]
    assert expected[1] in message


def test_jobs_end_with_a_parent_that_is_killed():
    code = """
def waits():
    os.write(2, b"up")
    time.sleep(600)
forked.side_by_side([waits, waits])
"""
    argv = [sys.executable, "-c", JOBS + code, json.dumps(sys.path)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, bufsize=0) as parent:
        heard = b""
        while heard != b"upup":
            heard += parent.stderr.read(2)
        parent.kill()
        assert parent.stderr.read() == b"", "it ends when the last child has closed it"
