"""Nobody reads what warmer says: a request to stop still ends it."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place


@contextlib.contextmanager
def full_pipe():
    """A pipe that takes no further byte, and whose reader does not read."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


def blocked(pid):
    """Whether some thread of the process is stuck in a write to a pipe."""
    for task in runs.listing(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/syscall") as stream:
            number, descriptor, *_ = [*stream.read().split(), "", ""]
            if number == "1" and descriptor in ("0x1", "0x2"):
                return True
    return False


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of write(2)")
@pytest.mark.parametrize(
    ("stream", "verb", "repo", "codes"),
    [
        ("stdout", "prefill", "hf://org/nothing", (4, 143)),
        ("stderr", "prefill", "hf://org/nothing", (4, 143)),
        ("stdout", "plan", None, (1, 143)),
    ],
    ids=["an error", "an error's line", "a plan"],
)
def test_a_signal_while_nobody_reads_the_answer_ends_it_at_once(place, stream, verb, repo, codes):
    options = ("--json", *(("--model", repo) if repo else ()))
    with full_pipe() as writer:
        outputs = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: writer}
        process = subprocess.Popen(place.command(verb, *options), env=place.env(), **outputs)
        try:
            runs.eventually(lambda: blocked(process.pid))
            sent = time.monotonic()
            process.send_signal(signal.SIGTERM)
            code = process.wait(3)
            took = time.monotonic() - sent
        finally:
            process.kill()
            process.wait()
    assert code in codes
    assert took < 2.0


@pytest.mark.parametrize("words", [["--help"], ["plan", "--help"]], ids=" ".join)
def test_a_reader_that_has_left_is_no_bug(words):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        done = subprocess.run(
            [*runs.WARMER, *words], stdout=nobody, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (0, "")
