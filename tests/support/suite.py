"""Run the tests in lanes side by side; what failed runs once more by itself, and is named.

Most tests wait half of their time, for processes, locks, leases and guests: so there is one lane
more than there are cores. lanes.py says how they share the work; the last lines say what it cost.

A test that fails in a whole run and passes alone is a defect, of the test or of the product, and
has to be mended; but the machine that ran it may have been busy, and the other four thousand
tests still say what they say. So few failures are tried again, once, and the last lines name them.

    python suite.py WORDS...    pytest's words; LANES=N for another number of lanes
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import costs

PASSED, SOME_FAILED = 0, 1
"""pytest's exit status when tests ran and none, or some, failed; any other is not tried again."""
FEW = 3
LANES = int(os.environ.get("LANES") or min((os.cpu_count() or 1) + 1, 8))
LANE = Path(__file__).resolve().with_name("lanes.py")
CACHES, LAST = Path(".pytest_cache"), Path("v", "cache", "lastfailed")


def main(*words):
    """Return the exit status."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    before, began = costs.machine(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="warmer-lanes-") as top:
        statuses = run(Path(top), words)
        told = [json.loads(path.read_text()) for path in Path(top).glob("*.json")]
    table = {name: cost for lane in told for name, cost in lane["costs"].items()}
    idle = costs.idle(before, costs.machine())
    print(*costs.lines(table), sep="\n")
    took = f"{time.monotonic() - began:.0f} s in {LANES} lanes"
    print(f"{took}, in which this machine was idle for {idle:.0%}", flush=True)
    worst = max(statuses, key=lambda status: (status not in (PASSED, SOME_FAILED), status))
    left = {name for lane in told for name in lane["all"]} - table.keys()
    if worst == PASSED and (left or len(told) < LANES):
        print(f"{LANES - len(told)} lanes did not tell; not run: {sorted(left)}")
        return SOME_FAILED
    return again() if worst == SOME_FAILED else worst


def run(top, words):
    """Run the lanes, the first where it is seen; the exit status of each."""
    # Where nothing may be cached, every child would compile what it imports.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with contextlib.ExitStack() as stack:
        lanes = []
        for number in range(LANES):
            log = stack.enter_context(open(top / f"{number}.log", "w+b")) if number else None
            (cache(number) / LAST).unlink(missing_ok=True)
            kept = f"cache_dir={cache(number)}"
            argv = [sys.executable, LANE, top, str(number), "-o", kept, *words]
            lane = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
            stack.callback(end, lane)
            lanes.append((lane, log))
        for lane, _ in lanes:
            lane.wait()
        sys.stdout.flush()
        for _, log in lanes[1:]:
            log.seek(0)
            shutil.copyfileobj(log, sys.stdout.buffer)
        sys.stdout.flush()
    return [lane.returncode for lane, _ in lanes]


def cache(number):
    return CACHES / f"lane-{number}"


def again():
    """Run what failed once more, if it is little; the exit status."""
    failed = set()
    for number in range(LANES):
        with contextlib.suppress(FileNotFoundError):
            failed |= json.loads((cache(number) / LAST).read_text()).keys()
    if len(failed) > FEW:
        return SOME_FAILED
    print(f"{len(failed)} failed; once more by themselves", flush=True)
    argv = [sys.executable, "-m", "pytest", "-o", f"cache_dir={CACHES / 'again'}", *sorted(failed)]
    status = subprocess.run(argv, check=False).returncode
    for test in sorted(failed) if status == PASSED else ():
        print(f"FLAKY: failed in the whole run, passed by itself: {test}", flush=True)
    return status


def end(process):
    """End what has not ended by itself."""
    if process.poll() is None:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
