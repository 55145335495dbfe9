"""Two nodes of one hostname take one lock at once; what their owners notice."""

import json
import subprocess
import sys
import time

import guest
from nodes import VOLUME, Node, serve

OWNER = """
import sys, time
import structlog
from warmer.fill.locks import LostGrantError
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.record import Owner
from warmer.layout import Volume
from warmer.model import Key

structlog.configure(
    logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    processors=[structlog.processors.JSONRenderer()],
)
# A lease that no slow machine outlasts: an owner that shows no life for one may be taken over from.
grant = FileLock(Volume(sys.argv[1]), me=sys.argv[2], lease=120.0).try_acquire(
    Key("weights", {"name": "org/model"})
)
print('"held"' if not isinstance(grant, Owner) else '"refused"', flush=True)
for line in sys.stdin:
    if isinstance(grant, Owner):
        break
    print("true" if grant.still_mine() else "false", flush=True)
"""


def start(node):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = node.run(sys.executable, "-c", OWNER, VOLUME, node.name, **pipes)
    return process, json.loads(process.stdout.readline())


def ask(process):
    """What it answers, and what it logged before."""
    process.stdin.write("still?\n")
    process.stdin.flush()
    logged = []
    while isinstance(answer := json.loads(process.stdout.readline()), dict):
        logged.append(answer["event"])
    return answer, logged


def main():
    serve(lease=10, grace=10)
    nodes = Node("castor", hostname="twin"), Node("pollux", hostname="twin")
    for node in nodes:
        node.mount("4.1")
    (one, first), (other, second) = start(nodes[0]), start(nodes[1])
    rounds = []
    until = time.monotonic() + 120
    while not rounds or (all(a for a, _ in rounds[-1]) and time.monotonic() < until):
        rounds.append((ask(one), ask(other)))
    guest.result(
        got=[first, second],
        mine=[[a[0], b[0]] for a, b in rounds],
        logged=[event for pair in rounds for _, events in pair for event in events],
    )


main()
