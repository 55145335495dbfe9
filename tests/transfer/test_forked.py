"""A forked worker shares nothing with its parent but two pipes and stderr, and never returns."""

import fcntl
import json
import os
import signal
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
