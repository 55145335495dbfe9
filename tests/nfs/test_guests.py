"""The guests themselves: their clock, their end, and what a power cut takes from their disk."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import uml

pytestmark = pytest.mark.skipif(not uml.available(), reason=uml.REASON)
SCENARIOS = Path(__file__).parent / "scenarios"


def namespace(pid):
    """The process namespace that a process is in."""
    return os.readlink(f"/proc/{pid}/ns/pid")


def inside(space):
    """The processes in a process namespace."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if namespace(pid) == space:
                found.append(int(pid))
        except OSError:
            continue  # it ended, or is ending
    return found


def test_a_guest_clock_runs_as_fast_as_ours():
    seen = []
    with uml.start(SCENARIOS / "clock.py") as guest:
        for count in range(1, 22):
            guest.until(lambda results, count=count: len(results) >= count)
            seen.append(time.monotonic())
        guest.wait()
    shown = [result["clock"] for result in guest.results]
    assert shown == sorted(shown)
    assert shown[-1] - shown[0] >= 2.0, "it slept for less than it was told"
    # A busy machine shows some lines late; the least late of the first and of the last tell.
    late = [here - there for here, there in zip(seen, shown, strict=True)]
    assert min(late[:7]) == pytest.approx(min(late[-7:]), abs=0.5)


def test_a_scenario_that_fails_is_told_with_the_end_of_its_log():
    with pytest.raises(uml.GuestError, match=r"(?s)ended with status 1.*this went wrong") as caught:
        uml.boot(SCENARIOS / "fails.py")
    assert "fails.py" in str(caught.value)


def test_a_report_is_heard_in_the_middle_of_a_line_of_another():
    found = uml.boot(SCENARIOS / "mutters.py")
    assert (found.results, found.status) == ([{"heard": True}], 0)


def test_a_guest_that_is_cut_is_gone_with_all_its_processes():
    with uml.start(SCENARIOS / "clock.py") as guest:
        guest.until(len)
        space = namespace(guest.pid)
        assert len(inside(space)) > 1
        guest.cut()
        assert inside(space) == []
    assert guest.status is None
    assert not os.path.exists(guest.top)


def test_a_guest_dies_with_the_process_that_started_it():
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import uml\n"
        "guest = uml.start(sys.argv[2]); guest.until(len)\n"
        "print(guest.pid, guest.top, flush=True); time.sleep(600)"
    )
    words = [os.path.dirname(uml.__file__), str(SCENARIOS / "clock.py")]
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE) as parent:
        pid, top = parent.stdout.readline().decode().split(maxsplit=1)
        space = namespace(pid)
        assert inside(space)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while inside(space):
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)
    shutil.rmtree(top.strip())


def test_a_power_cut_takes_what_was_not_flushed(tmp_path):
    image = uml.make_disk(tmp_path / "disk.img")
    with uml.start(SCENARIOS / "flushes.py", disk=image) as guest:
        guest.until(len)
        guest.cut()
    with uml.mounted(image, tmp_path / "disk") as root:
        lost = Path(root, "lost")
        assert not lost.exists() or lost.read_bytes() == b""
        assert Path(root, "kept").read_bytes() == b"flushed"
