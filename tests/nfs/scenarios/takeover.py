"""An owner that is stopped, or cut off, on one node; a waiter on the other; what each may do then."""

import json
import os
import signal
import subprocess
import sys

import guest
import volumes
from nodes import EXPORT, VOLUME, Node, serve

from warmer.model import Key

OWNER = """
import json, os, sys
import structlog, volumes
from warmer.fill.locks import LostGrantError
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.record import Owner
from warmer.layout import Volume
from warmer.model import Key

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
root, name, lease = json.loads(sys.argv[1])
volume, key = Volume(root), Key("weights", {"name": name})
grant = FileLock(volume, me="first", lease=lease).try_acquire(key)
assert not isinstance(grant, Owner)
staging, sealed = volumes.stage(volume, key, {"files/a": b"the first one's"})
print("held", flush=True)
sys.stdin.readline()
try:
    volumes.commit(volume, staging, sealed, grant=grant)
    print("published", flush=True)
except LostGrantError:
    print("refused", flush=True)
"""
WAITER = """
import json, sys, time
import structlog, volumes
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.record import Owner
from warmer.layout import Volume
from warmer.model import Key

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
root, name, lease = json.loads(sys.argv[1])
volume, key = Volume(root), Key("weights", {"name": name})
lock = FileLock(volume, me="second", lease=lease)
started = time.monotonic()
looks = 0
while isinstance(grant := lock.try_acquire(key), Owner):
    looks += 1
    if looks == 1:
        print(json.dumps(grant.name), flush=True)
    assert time.monotonic() - started < 120, grant
    time.sleep(0.2)
waited = time.monotonic() - started
staging, sealed = volumes.stage(volume, key, {"files/a": b"the second one's"})
number = volumes.commit(volume, staging, sealed, grant=grant)
print(json.dumps([waited, grant.epoch, number]), flush=True)
"""


def start(node, code, name, lease):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return node.run(sys.executable, "-c", code, json.dumps([VOLUME, name, lease]), **pipes)


def case(first, second, name, *, lease, hit, heal):
    """Hold on one node, hit it, have the other take over and publish, heal, and let the first go on."""
    owner = start(first, OWNER, name, lease)
    assert owner.stdout.readline() == "held\n"
    waiter = start(second, WAITER, name, lease)
    waits_for = json.loads(waiter.stdout.readline())
    hit(owner)
    waited, epoch, number = json.loads(waiter.stdout.readline())
    heal(owner)
    owner.stdin.write("go on\n")
    owner.stdin.flush()
    said = owner.stdout.readline().strip()
    key = Key("weights", {"name": name}).digest
    whole = sum(key == published for _, published, _ in volumes.assert_invariants(EXPORT))
    found = {"waits_for": waits_for, "waited": waited, "epoch": epoch, "number": number}
    guest.result(case=name, owner=said, whole=whole, **found)
    owner.wait()
    waiter.wait()


def main():
    serve(lease=10, grace=10)
    alpha, beta = Node("alpha"), Node("beta")
    for node in (alpha, beta):
        node.mount(guest.args()["vers"])
    lease = guest.args()["lease"]
    stop = {
        "hit": lambda owner: os.kill(owner.pid, signal.SIGSTOP),
        "heal": lambda owner: os.kill(owner.pid, signal.SIGCONT),
    }
    cut = {"hit": lambda _: alpha.link(up=False), "heal": lambda _: alpha.link(up=True)}
    case(alpha, beta, "stopped", lease=lease, **stop)
    case(alpha, beta, "cut off, the server first", lease=60.0, **cut)
    case(alpha, beta, "cut off, the waiter first", lease=lease, **cut)


main()
