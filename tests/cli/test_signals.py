"""SIGTERM and SIGINT at every stage: out in two seconds, nothing staged, held or left running."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

REPOSITORY = os.path.join(os.path.dirname(__file__), "..", "..")
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
PREFIXES = [(), runs.AS_FIRST]


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place


def warmer_of(process, *, prefix):
    """The warmer itself: the process, or what became PID 1 in its namespace."""
    if not prefix:
        return process.pid
    with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as stream:
        (child,) = stream.read().split()
    with open(f"/proc/{child}/status", encoding="ascii") as stream:
        (pids,) = (line for line in stream if line.startswith("NSpid:"))
    assert pids.split()[-1] == "1"
    return int(child)


def stop(process, signum, *, prefix=()):
    """Send the signal; return the run and how long it took from then."""
    pid = warmer_of(process, prefix=prefix)
    sent = time.monotonic()
    os.kill(pid, signum)
    result = runs.finish(process, timeout=10)
    return result, time.monotonic() - sent


def cleaned_up(place, result, took, *, signum, code):
    assert (result.code, took < 2.0) == (code, True), (result, took)
    assert result.said == [f"warmer: stopped by {signal.Signals(signum).name}"]
    assert place.staged() == []
    assert place.held() == []
    assert runs.processes(place.warm) == []
    assert not os.path.exists(f"{place.warm}/handoff/handoff.json")


def takes_over(place):
    """Another process gets the lock at once, and everything it needs."""
    place.hub.faults.clear()
    place.warmed("--wait", "0", "--on-miss", "fail")
    assert place.run("check", "--deep").code == 0
    assert (place.staged(), place.held()) == ([], [])


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
@pytest.mark.parametrize("prefix", PREFIXES, ids=["child", "pid1"])
def test_a_signal_during_the_download(place, signum, code, prefix):
    place.hub.fault(r"\.safetensors$", rate=20_000)
    filling = place.start("prefill", prefix=prefix)
    runs.eventually(lambda: set(runs.SHARDS) <= set(place.fetched()))
    assert (len(place.staged()), len(place.held())) == (1, 2)
    result, took = stop(filling, signum, prefix=prefix)
    cleaned_up(place, result, took, signum=signum, code=code)
    assert runs.published(place.volume) == {}
    takes_over(place)


def test_a_signal_that_meets_another_thread_during_the_download(place):
    # The kernel may give a signal to any thread. The first has to hear of it without waking by it:
    # so it is, too, with one that comes the moment before that thread blocks.
    place.hub.fault(r"\.safetensors$", rate=20_000)
    filling = place.start("prefill")
    runs.eventually(lambda: set(runs.SHARDS) <= set(place.fetched()))
    (other, *_) = set(map(int, os.listdir(f"/proc/{filling.pid}/task"))) - {filling.pid}
    sent = time.monotonic()
    assert ctypes.CDLL(None).tgkill(filling.pid, other, signal.SIGTERM) == 0
    result = runs.finish(filling, timeout=5)
    took = time.monotonic() - sent
    cleaned_up(place, result, took, signum=signal.SIGTERM, code=143)


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
@pytest.mark.parametrize("prefix", PREFIXES, ids=["child", "pid1"])
def test_a_signal_during_the_engine_run(place, signum, code, prefix):
    building = place.start("prefill", prefix=prefix, env={"FAKE_ENGINE": "hang,leave-child"})
    runs.eventually(lambda: any("EngineCore" in words for words in command_lines(place)))
    assert len(place.held()) == 2
    result, took = stop(building, signum, prefix=prefix)
    cleaned_up(place, result, took, signum=signum, code=code)
    assert (len(place.generations("weights")), place.generations("compile")) == (1, [])
    asked = len(place.hub.requests)
    takes_over(place)
    assert place.fetched(asked) == []


def command_lines(place):
    for pid in runs.processes(place.warm):
        with open(f"/proc/{pid}/cmdline", encoding="utf-8") as stream:
            yield stream.read()


def test_a_signal_while_the_hub_does_not_answer(place):
    place.hub.fault("^/api/", stall=60)
    asking = place.start("prefill")
    runs.eventually(lambda: place.hub.requests)
    result, took = stop(asking, signal.SIGTERM)
    cleaned_up(place, result, took, signum=signal.SIGTERM, code=143)
    takes_over(place)


def test_a_signal_between_two_tries(place):
    place.hub.fault("^/api/", status=429, retry_after=30)
    retrying = place.start("prefill", "--retry", "120")
    runs.eventually(lambda: place.hub.requests)
    result, took = stop(retrying, signal.SIGTERM)
    cleaned_up(place, result, took, signum=signal.SIGTERM, code=143)


def test_a_signal_while_waiting_for_another_owner_leaves_that_one_alone(place, tmp_path):
    other = place.but(warm=str(tmp_path / "other"))
    place.hub.fault(r"\.safetensors$", rate=20_000)
    owner = other.start("prefill", "--json")
    runs.eventually(lambda: set(runs.SHARDS) <= set(place.fetched()))
    waiting = place.start("prefill")
    runs.eventually(lambda: os.path.exists(f"{place.warm}/handoff/plan.json"))
    result, took = stop(waiting, signal.SIGTERM)
    assert (result.code, took < 2.0) == (143, True), (result, took)
    assert (len(other.staged()), len(other.held())) == (1, 2)
    assert not runs.locked(f"{place.warm}/lock")
    result, took = stop(owner, signal.SIGTERM)
    cleaned_up(other, result, took, signum=signal.SIGTERM, code=143)


def test_further_signals_do_not_cut_the_clean_up_short(place):
    building = place.start("prefill", env={"FAKE_ENGINE": "hang,leave-child"})
    runs.eventually(lambda: any("EngineCore" in words for words in command_lines(place)))
    sent = time.monotonic()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        os.kill(building.pid, signum)
        time.sleep(0.02)
    result = runs.finish(building, timeout=10)
    took = time.monotonic() - sent
    cleaned_up(place, result, took, signum=signal.SIGTERM, code=143)


def test_a_signal_at_any_moment_of_a_start_ends_it_without_a_trace(place):
    # Early ones meet the imports, late ones the pipeline: whatever it meets, no traceback.
    for delay in (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.45):
        starting = place.start("prefill", env={"FAKE_ENGINE": "slow=5"})
        time.sleep(delay)
        result, took = stop(starting, signal.SIGTERM)
        assert result.code in (143, -signal.SIGTERM), (delay, result)
        assert "Traceback" not in result.err, (delay, result)
        assert took < 2.0, delay
        assert (place.staged(), place.held(), runs.processes(place.warm)) == ([], [], []), delay


FINALISERS = {
    "del": "class Dropped:\n    def __del__(self): stopped()\nDropped()",
    "weakref": "import weakref\nclass Dropped: pass\nd = Dropped()\nr = weakref.ref(d, stopped)\ndel d",
    # As answers of HTTP libraries are; Python 3.12 and older say nothing of what is raised there.
    "stream": "import io\nclass Dropped(io.RawIOBase):\n    def close(self): stopped()\nDropped()",
}
WORK = """
import os, signal, sys, time
from warmer import cli

def stopped(*_):
    os.kill(os.getpid(), int(sys.argv[2]))

def work():
    for _ in range(2):  # the second meets the hook that the first has set going
        exec(sys.argv[1], {"stopped": stopped})
    until = time.monotonic() + 5
    while time.monotonic() < until:
        time.sleep(0.001)
    return 0

cli._run = work
cli.main()
"""


@pytest.mark.parametrize("finaliser", FINALISERS)
@pytest.mark.parametrize(("signum", "code"), SIGNALS)
def test_a_signal_that_meets_a_finaliser_is_heeded(finaliser, signum, code):
    """Python drops what is raised in one, and nobody would ever hear of the signal."""
    argv = [sys.executable, "-c", WORK, FINALISERS[finaliser], str(int(signum))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=REPOSITORY)
    assert done.returncode == code, done
    assert done.stderr == f"warmer: stopped by {signum.name}\n"


def test_two_signals_at_once_are_one_line():
    """As where a terminal and a supervisor both end it: Python itself must not complain of either."""
    both = (
        "import os, signal, sys, time\nfrom warmer import cli\n"
        "def work():\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, stops)\n"
        "    for number in stops: os.kill(os.getpid(), number)\n"
        "    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)\n"
        "    time.sleep(5)\n"
        "stops = (signal.SIGINT, signal.SIGTERM)\ncli._run = work\ncli.main()\n"
    )
    argv = [sys.executable, "-c", both]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (130, "warmer: stopped by SIGINT\n")


@pytest.mark.parametrize("kind", ["weights", "compile"])
def test_a_signal_that_arrives_while_a_staging_is_made_leaves_none(place, tmp_path, kind):
    log = tmp_path / "calls"
    trace = ("strace", "-o", str(log), "-e", "trace=?mkdir,?mkdirat")

    def made():
        lines = log.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith("mkdir")]

    assert runs.finish(place.start("prefill", prefix=trace)).code == 0
    number = next(n for n, call in enumerate(made(), 1) if f"/staging/{kind}-" in call)
    for top in (place.volume, place.warm):
        shutil.rmtree(top)
        os.mkdir(top)
    inject = ("-e", f"inject=?mkdir,?mkdirat:signal=SIGTERM:when={number}")
    result = runs.finish(place.start("prefill", prefix=(*trace, *inject)))
    assert len(made()) == number
    assert f"/staging/{kind}-" in made()[-1]
    assert result.said == ["warmer: stopped by SIGTERM"]
    assert (place.staged(), place.held(), runs.processes(place.warm)) == ([], [], [])


def test_a_signal_while_a_class_is_made_is_no_bug():
    script = (
        "import os, signal\nfrom warmer import cli\n"
        "class Attribute:\n    def __set_name__(self, *_):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n        signal.pause()\n"
        "def work():\n    class Made:\n        attribute = Attribute()\n"
        "cli._run = work\ncli.main()\n"
    )
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (143, "warmer: stopped by SIGTERM\n")
