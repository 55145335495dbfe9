"""What is started beside an engine's run (`warmer.fill.process`)."""

import subprocess
import sys

import pytest

from warmer.errors import EngineError
from warmer.fill import process


def test_a_process_that_the_kernel_refuses_is_no_bug():
    with pytest.raises(EngineError, match="got no process for the engine") as caught:
        with process.spawned(["x" * (1 << 22)], {}):
            raise AssertionError("it was started")
    assert caught.value.reason == "no-process"


def test_the_watch_of_an_engine_that_is_gone_says_nothing():
    with subprocess.Popen([sys.executable, "-S", "-c", ""], start_new_session=True) as engine:
        engine.wait(30)
    argv = [sys.executable, "-I", "-S", "-c", process._WATCH, str(engine.pid)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_watch_kills_all_that_an_engine_started_when_warmer_is_gone():
    script = "import os, signal; os.fork(); print(flush=True); signal.pause()"
    argv = [sys.executable, "-S", "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, start_new_session=True, **pipes) as engine:
        engine.stdout.readline()
        watch = [sys.executable, "-I", "-S", "-c", process._WATCH, str(engine.pid)]
        assert subprocess.run(watch, stdin=subprocess.DEVNULL).returncode == 0
        assert engine.wait(30) == -9
        engine.stdout.read()  # ends once nobody holds the other end
