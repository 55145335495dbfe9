"""What a download says of itself: bars to a person at a terminal, lines to everything else."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

FIRST, SECOND = runs.SHARDS
# The command line, with more lines than anybody wants to read.
TALKATIVE = (
    "from warmer.fill import progress; progress.EVERY = 0.05; from warmer import cli; cli.main()"
)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place


class Screen:
    """A run whose stderr is a terminal of so many columns; `text` is all that came to it."""

    def __init__(self, place, *options, width, term="xterm-256color"):
        mine, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        words = place.command("prefill", "--compile", "never", *options)
        env = place.env({"TERM": term})
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": its}
        self.text = ""
        self._process = subprocess.Popen(words, env=env, text=True, **pipes)
        os.close(its)
        self._reading = threading.Thread(target=self._read, args=(mine,), daemon=True)
        self._reading.start()

    def _read(self, descriptor):
        while data := self._some(descriptor):
            self.text += data.decode("utf-8", "replace")
        os.close(descriptor)

    @staticmethod
    def _some(descriptor):
        try:
            return os.read(descriptor, 4096)
        except OSError:  # EIO: nobody has the other end open
            return b""

    def end(self):
        """Wait for the end; return the exit status and stdout."""
        out, _ = self._process.communicate(timeout=60)
        self._reading.join(10)
        return self._process.returncode, out

    @property
    def lines(self):
        """What was written, less the cursor's movements."""
        return ESCAPES.sub("", self.text.replace("\r\n", "\n")).replace("\r", "\n").splitlines()


def throttled(place):
    """Make the download slow, and interrupted by a warning: a failure that is tried again."""
    place.hub.fault(SECOND, method="GET", times=1, status=503)
    place.hub.fault(SECOND, rate=1_500_000)


@pytest.mark.parametrize("width", [60, 120])
def test_a_terminal_shows_bars_and_log_lines_keep_clear_of_them(place, width):
    throttled(place)
    screen = Screen(place, "--json", width=width)
    code, out = screen.end()
    assert (code, json.loads(out)["retries"]) == (0, {"unavailable": 1}), screen.text
    bars = [line for line in screen.lines if "━" in line]
    assert any(line.startswith("weights ") for line in bars), screen.text
    assert any("tensors ━" in line for line in bars), screen.text
    assert all(len(line) <= width for line in bars), "a bar that wraps pushes the others away"
    assert any(re.search(r" [\d.]+/1\.\d MB +[\d.]+ [kM]B/s +\d:\d\d:\d\d", line) for line in bars)
    (warning,) = (line for line in screen.lines if "source failed, trying again" in line)
    assert re.search(r"in_s\s*=\s*[\d.]+ *$", warning), "the line has its end"
    assert re.match(r"\d{4}-\d\d-\d\d", warning), "the line has its beginning"
    assert "━" not in warning
    (filling,) = (line for line in screen.lines if "filling " in line)
    assert place.model in filling
    assert screen.text.count("\x1b[?25l") == screen.text.count("\x1b[?25h"), "the cursor is back"


def test_beside_the_bars_stdout_has_the_summary_alone(place):
    code, out = (screen := Screen(place, width=100)).end()
    assert code == 0, screen.text
    first, *rest = out.splitlines()
    assert first.startswith(("warm: ", "handed off: ")), out
    assert all(line.startswith(("  without ", "next: ")) for line in rest), out
    assert "━" not in out
    assert "\x1b" not in out


def test_a_failure_is_said_below_the_bars(place):
    place.hub.fault(SECOND, status=403)
    code, out = (screen := Screen(place, width=100)).end()
    assert (code, out) == (4, ""), screen.text
    said = screen.lines
    at = next(n for n, line in enumerate(said) if line.startswith("warmer: "))
    assert said[at + 1].startswith("hint: ")
    assert not [line for line in said[at:] if "━" in line]


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(place):
    place.hub.fault(SECOND, rate=3_000_000)
    code, _ = (screen := Screen(place, width=100, term="dumb")).end()
    assert code == 0
    assert "━" not in screen.text


def test_elsewhere_structured_lines_tell_bytes_rate_and_time_left(place):
    place.hub.fault(SECOND, rate=1_500_000)
    words = place.command("prefill", "--json", "--compile", "never")[len(runs.WARMER) :]
    result = runs.finish(runs.spawn([sys.executable, "-c", TALKATIVE, *words], place.env()))
    assert result.code == 0, result
    lines = [line for line in result.logged if line["event"] == "downloading"]
    total = result.json["bytes"]["weights"]
    assert len(lines) > 2, result.err
    assert [line["bytes"] for line in lines] == sorted(line["bytes"] for line in lines)
    for line in lines:
        assert (line["kind"], line["of"]) == ("weights", total)
        assert 0 <= line["bytes"] <= total
        if line["bytes_per_s"]:
            expected = (total - line["bytes"]) / line["bytes_per_s"]
            assert abs(line["eta_s"] - expected) <= 1, line
        else:
            assert line["eta_s"] is None
    assert any(line["bytes_per_s"] > 0 for line in lines)
    assert "━" not in result.err
    assert result.said == []


def test_a_source_that_stalls_is_seen_to_stall(place):
    place.hub.fault(SECOND, method="GET", times=1, stall=2.0)
    words = place.command("prefill", "--json", "--compile", "never")[len(runs.WARMER) :]
    result = runs.finish(runs.spawn([sys.executable, "-c", TALKATIVE, *words], place.env()))
    lines = [line for line in result.logged if line["event"] == "downloading"]
    still = [line for line in lines if line["bytes_per_s"] == 0 and line["eta_s"] is None]
    assert still, result.err
    assert 0 < still[-1]["bytes"] < still[-1]["of"]
