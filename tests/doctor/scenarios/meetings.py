"""Two doctors on two NFS nodes meet over and over, in step: what each says, one line a meeting."""

import os
import subprocess
import sys
import time

import guest
from nodes import VOLUME, Node, serve

from warmer.doctor import pair, place
from warmer.errors import BusyError
from warmer.layout import Volume

PATIENCE = 30.0


def meet_over_and_over(name, other, rounds):
    """Be one of them; both begin each round at once, for their clocks' ticks to coincide."""
    volume = Volume(VOLUME)
    for number in range(rounds):
        open(f"/run/{name}-{number}", "w").close()
        while not os.path.exists(f"/run/{other}-{number}"):
            time.sleep(0.001)
        with place.private(volume) as mine:
            try:
                found = pair.meet(volume, mine, me={}, timeout=PATIENCE, alive=lambda: None)
                found.tell() if found.role == "a" else found.learn()
                found.part()
            except BusyError as exc:
                print(f"{number}: {exc.message}", flush=True)
                return
    print("all", flush=True)


def main():
    asked = guest.args()
    serve()
    nodes = [Node(name) for name in ("alpha", "beta")]
    for node in nodes:
        node.mount(asked["vers"], asked["options"])
    both = [
        node.run(
            *(sys.executable, __file__, node.name, other.name, asked["rounds"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        for node, other in (nodes, nodes[::-1])
    ]
    guest.result(said=[process.communicate()[0].splitlines()[-1:] for process in both])


if sys.argv[1:] and sys.argv[1] in ("alpha", "beta"):
    meet_over_and_over(sys.argv[1], sys.argv[2], int(sys.argv[3]))
else:
    main()
