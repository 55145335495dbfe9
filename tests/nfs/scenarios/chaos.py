"""Two nodes full of fillers, whose lock's holder is killed or cut off again and again.

The nemesis reads the owners' records on the server's own disk, so that it hits who holds a lock.
"""

import json
import os
import random
import selectors
import subprocess
import sys
import time
from pathlib import Path

import guest
import volumes
from nodes import EXPORT, VOLUME, Node, serve

FILLER = Path(__file__).parent / "filler.py"


class Pods:
    """Fillers on the nodes; whoever is killed is started again, as a kubelet does."""

    def __init__(self, nodes, per_node, keys, lease):
        self._job = (keys, lease)
        self._selector = selectors.DefaultSelector()
        self.running = {}
        self._heard = {}
        self.said = []
        self.holds = 0
        for node in nodes:
            for _ in range(per_node):
                self.start(node)

    def start(self, node):
        words = json.dumps([VOLUME, node.name, *self._job])
        process = node.run(sys.executable, FILLER, words, stdout=subprocess.PIPE)
        self.running[process.pid] = (process, node)
        self._heard[process.pid] = b""
        self._selector.register(process.stdout, selectors.EVENT_READ, process.pid)

    def listen(self, seconds):
        """Hear what they say for a while; the dead are started again, the finished not."""
        until = time.monotonic() + seconds
        while self.running and (left := until - time.monotonic()) > 0:
            for event, _ in self._selector.select(left):
                self._hear(event.data)

    def _hear(self, pid):
        process, node = self.running[pid]
        if fresh := os.read(process.stdout.fileno(), 1 << 16):
            *lines, self._heard[pid] = (self._heard[pid] + fresh).split(b"\n")
            for word in map(json.loads, lines):
                self.holds += "holds" in word
                if "came" in word:
                    self.said.append((word["key"], word["came"]))
            return
        self._selector.unregister(process.stdout)
        process.stdout.close()
        del self.running[pid]
        if process.wait():
            self.start(node)

    def holders(self):
        """(pid, node's name) of every owner that a lock's record names, read on the server."""
        found = []
        for path in Path(EXPORT, "v1", "locks").glob("*.lock"):
            record = json.loads(path.read_bytes() or b"{}")
            name, _, pid = record.get("name", "").partition("/")
            if pid and int(pid) in self.running:
                found.append((int(pid), name))
        return found


def main():
    told = guest.args()
    chance = random.Random(told["seed"])  # noqa: S311 - a nemesis, not a secret
    serve(lease=10, grace=10)
    nodes = {name: Node(name) for name in ("alpha", "beta")}
    for node in nodes.values():
        node.mount("4.1")
    pods = Pods(nodes.values(), told["workers"], told["keys"], told["lease"])
    kills = partitions = 0
    cut_off = {}
    deadline = time.monotonic() + told["seconds"]
    while pods.running and time.monotonic() < deadline:
        pods.listen(chance.uniform(0.1, 0.8))
        for name, until in list(cut_off.items()):
            if time.monotonic() >= until:
                nodes[name].link(up=True)
                del cut_off[name]
        holders = [one for one in pods.holders() if one[1] not in cut_off]
        if not holders:
            continue
        pid, name = chance.choice(holders)
        if partitions < told["partitions"] and not cut_off and kills >= 3 * (partitions + 1):
            nodes[name].link(up=False)
            cut_off[name] = time.monotonic() + told["silence"]
            partitions += 1
        elif kills < told["kills"]:
            os.kill(pid, 9)
            kills += 1
    for name in cut_off:
        nodes[name].link(up=True)
    pods.listen(60)
    came = [word for _, word in pods.said]
    acked = [key for key, word in pods.said if word == "published"]
    guest.result(
        left=len(pods.running),
        kills=kills,
        partitions=partitions,
        fills=pods.holds,
        acked=len(acked),
        acked_twice=len(acked) - len(set(acked)),
        lost_lock=came.count("lost the lock"),
        lost_race=came.count("lost the race"),
        busy=came.count("busy"),
        published=sorted(number for _, _, number in volumes.assert_invariants(EXPORT)),
        staging=len(os.listdir(Path(EXPORT, "v1", "staging"))),
    )


main()
