"""A node that was cut off for longer than its lease, and comes back believing it has the lock."""

import time

import guest
from nodes import VOLUME, Node, serve

VERSIONS = ("4.1", "4.0")


def main():
    serve(lease=10, grace=10)
    pairs = {vers: (Node(f"alpha-{vers}"), Node(f"beta-{vers}")) for vers in VERSIONS}
    hands = {}
    for vers, nodes in pairs.items():
        for node in nodes:
            node.mount(vers)
        zombie, heir = hands[vers] = [node.hand() for node in nodes]
        path = f"{VOLUME}/lock-{vers}"
        held = [zombie.ask("lock", path), zombie.ask("write_locked", path), heir.ask("lock", path)]
        guest.result(vers=vers, held=held)
    for alpha, _ in pairs.values():
        alpha.link(up=False)
    cut = time.monotonic()
    for vers, (_, heir) in hands.items():
        freed = heir.lock_until(f"{VOLUME}/lock-{vers}", 90)
        guest.result(vers=vers, freed=freed and freed - cut)
    for alpha, _ in pairs.values():
        alpha.link(up=True)
    for vers, (zombie, heir) in hands.items():
        path = f"{VOLUME}/lock-{vers}"
        # In this order: the server's answer to the first makes the client find out.
        answers = {
            "locked": zombie.ask("write_locked", path, timeout=90),
            "other": zombie.ask("put", f"{VOLUME}/other-{vers}", "from the dead"),
            "heir": heir.ask("write_locked", path),
        }
        answers["other"] = "ok" if isinstance(answers["other"], float) else answers["other"]
        guest.result(vers=vers, answers=answers)


main()
