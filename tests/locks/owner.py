"""Opens a lock; as a program, a process that holds one and does as it is told.

A JSON line on stdin is an order, the JSON line on stdout its answer. It ends with its stdin.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time

import structlog

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import volumes

from warmer.fill.locks import LostGrantError, tickets
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.lease import LeaseLock
from warmer.fill.locks.record import Owner
from warmer.fill.publish import LostRaceError
from warmer.layout import Volume
from warmer.model import Key

KEY = Key("weights", {"name": "org/model"})
OTHER = Key("weights", {"name": "org/other"})


def named(name):
    """Return a key of this name."""
    return Key("weights", {"name": name})


def open_lock(at, *, me, lease, register=None):
    """Open a lock by its constructors, which take any lease; a register may be used again."""
    how = {"me": me, "node": "a node", "lease": lease}
    if at["mechanism"] == "file":
        return FileLock(Volume(at["volume"]), **how)
    if at["mechanism"] == "tickets":
        tickets._SETTLE = at.get("settle", tickets._SETTLE)
        return tickets.Tickets(Volume(at["volume"]), **how)
    return LeaseLock(register or open_register(at), **how)


def open_register(at):
    """Open where leases are kept; a process pays for the client of one service."""
    if at["mechanism"] == "k8s":
        from warmer.fill.locks.kubernetes import KubernetesRegister as Register  # noqa: PLC0415
    else:
        from warmer.fill.locks.s3 import S3Register as Register  # noqa: PLC0415
    return Register(at["place"], at["prefix"])


class Held:
    """The lock and the grants of this process; each method is an order."""

    def __init__(self, at, *, me, lease):
        self._volume = Volume(at["volume"])
        self._lock = open_lock(at, me=me, lease=lease)
        self._grants = {}

    def take(self, key, seconds=0.0, pause=0.05):
        """Ask until it is granted, or the seconds are over."""
        began, asked = time.monotonic(), 0
        while True:
            found, asked = self._lock.try_acquire(named(key)), asked + 1
            how = {"asked": asked, "seconds": time.monotonic() - began}
            if not isinstance(found, Owner):
                self._grants[key] = found
                return {"epoch": found.epoch, **how}
            if how["seconds"] >= seconds:
                return {"owner": dataclasses.asdict(found), **how}
            time.sleep(pause)

    def note(self, key, phase="working", done=0, total=0):
        try:
            self._grants[key].note(phase, done, total)
        except LostGrantError as exc:
            return {"lost": exc.reason}
        return {"lost": None}

    def mine(self, key):
        return {"mine": self._grants[key].still_mine()}

    def release(self, key):
        self._grants[key].release()
        return {}

    def clocks(self, key):
        return {"wall": time.time(), "monotonic": time.monotonic()}

    def compute(self, key, seconds):
        """Be busy in pure Python on the main thread, as no fill ever is for so long."""
        until, steps = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            steps += sum(n * n for n in range(1000))
        return {"steps": steps}

    def stage(self, key):
        self._staged = volumes.stage(self._volume, named(key))
        return {}

    def publish(self, key):
        try:
            number = volumes.commit(self._volume, *self._staged, grant=self._grants[key])
        except (LostGrantError, LostRaceError) as exc:
            return {"lost": exc.reason}
        return {"lost": None, "generation": number}


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    held = Held(**json.loads(sys.argv[1]))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(held, order.pop("do"))(**order)), file=answers, flush=True)
    os._exit(0)  # as a process that is gone: nothing is released


if __name__ == "__main__":
    main()
