"""Processes that hold a lock as they are told, and can be killed, stopped and woken."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "owner.py")
_DEADLINE = 60.0


class Child:
    """An `owner.py`: `tell` it what to do and `hear` how it went, or `ask`, which is both.

    `log` is the path of what it says on stderr; `prefix` a command that becomes it.
    """

    def __init__(self, at, *, me, lease, log, env=None, prefix=()):
        how = json.dumps({"at": at, "me": me, "lease": lease})
        self.log = Path(log)
        with self.log.open("w") as stderr:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, _PROGRAM, how],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | (env or {}),
            )
        self._heard = b""

    def ready(self):
        """Wait until its lock is open; return it."""
        self.hear()
        return self

    def tell(self, do, key, **how):
        order = {"do": do, "key": key.factors["name"], **how}
        self._process.stdin.write(f"{json.dumps(order)}\n".encode())
        self._process.stdin.flush()

    def hear(self):
        """Return its next answer; fail after a deadline, or where it ended without one."""
        out = self._process.stdout.fileno()
        until = time.monotonic() + _DEADLINE
        while b"\n" not in self._heard:
            ready, _, _ = select.select([out], [], [], max(0, until - time.monotonic()))
            assert ready, f"it says nothing; its log:\n{self.log.read_text()}"
            more = os.read(out, 1 << 16)
            assert more, f"it ended without a word; its log:\n{self.log.read_text()}"
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def ask(self, do, key, **how):
        self.tell(do, key, **how)
        return self.hear()

    def stop(self):
        """Stop it as `kubectl debug` or a hypervisor would; return once it stands still."""
        self._process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self._process.pid}/stat")
        until = time.monotonic() + _DEADLINE
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < until, "it did not stop"
            time.sleep(0.005)

    def wake(self):
        self._process.send_signal(signal.SIGCONT)

    def kill(self):
        """Kill -9 and reap; safe to call twice."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
