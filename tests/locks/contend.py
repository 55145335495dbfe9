"""Many processes that want one key, and a detector of overlaps that uses no lock: a program.

Whoever is granted makes a file that must not exist, notes its grant, and removes the file. Its
argument is JSON: `at` (see `owner`), `processes`, `rounds`, `rest` and `directory`, where it leaves
`grants`, a line of epoch and process each, and `overlaps` and `refusals`, a byte each.
"""

import json
import os
import random
import subprocess
import sys
import time

import structlog

sys.path.insert(0, os.path.dirname(__file__))
from owner import KEY, open_lock, open_register

from warmer.fill.locks.record import Owner

LINE = "%9d %9d\n"
_HOLD = 0.001


class _Nothing:
    """A grant of no lock at all, to see that the detector sees."""

    epoch = 1

    def release(self):
        pass


class NoLock:
    def try_acquire(self, _key):
        return _Nothing()


def contend(lock, directory, *, rounds, rest):
    """Take the key again and again, and rest so long after each time, until it was granted so often in all."""
    grants = _append(f"{directory}/grants")
    while os.fstat(grants).st_size < rounds * len(LINE % (0, 0)):
        found = lock.try_acquire(KEY)
        if isinstance(found, Owner):
            os.write(_append(f"{directory}/refusals"), b".")
            time.sleep(random.uniform(0.02, 0.1))  # noqa: S311 - jitter
            continue
        try:
            os.close(os.open(f"{directory}/inside", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            os.write(_append(f"{directory}/overlaps"), b".")
        os.write(grants, (LINE % (found.epoch, os.getpid())).encode())
        time.sleep(_HOLD)
        try:
            os.unlink(f"{directory}/inside")
        except FileNotFoundError:
            os.write(_append(f"{directory}/overlaps"), b".")
        found.release()
        time.sleep(random.uniform(rest / 2, rest))  # noqa: S311 - jitter


_open = {}


def _append(path):
    if path not in _open:
        _open[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return _open[path]


def contend_all(at, directory, *, processes, rounds, rest=0.02):
    """Run this program; return (epoch, process) of the grants in order, overlaps and refusals."""
    os.mkdir(directory)
    how = {"at": at, "processes": processes, "rounds": rounds, "rest": rest}
    how["directory"] = str(directory)
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(how)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    grants = [line.split() for line in (directory / "grants").read_text().splitlines()]
    counts = [directory / name for name in ("overlaps", "refusals")]
    overlaps, refusals = (path.stat().st_size if path.exists() else 0 for path in counts)
    return [(int(epoch), int(pid)) for epoch, pid in grants], overlaps, refusals


def main():
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    how = json.loads(sys.argv[1])
    at, pids = how["at"], []
    if at["mechanism"] in ("k8s", "s3"):
        open_register(at)  # so that its modules are read once
    for number in range(how["processes"]):
        pids.append(os.fork())
        if not pids[-1]:
            status = 1
            try:
                lock = NoLock()
                if at["mechanism"] != "none":
                    lock = open_lock(at, me=f"contender {number}", lease=30.0)
                contend(lock, how["directory"], rounds=how["rounds"], rest=how["rest"])
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
    sys.exit(max(os.waitpid(pid, 0)[1] for pid in pids) > 0)


if __name__ == "__main__":
    main()
