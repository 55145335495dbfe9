"""Which locks exclude between two nodes, when a dead holder's is free, and what a rename replaces."""

import time

import guest
from nodes import VOLUME, Node, serve

OPTIONS = {"4.1": "", "4.0": "", "3": "nolock"}


def locks(one, two, name):
    """Both try for one lock; if only one got it, it is killed and the other tries on."""
    path = f"{VOLUME}/lock-{name}"
    with one.hand() as holder, two.hand() as waiter:
        answers = [holder.ask("lock", path), waiter.ask("lock", path)]
        freed = None
        if answers == ["ok", "EAGAIN"]:
            killed = time.monotonic()
            holder.kill()
            freed = waiter.lock_until(path, 60)
            freed = freed and freed - killed
    guest.result(case=name, locks=answers, freed=freed)


def renames(one, two, name):
    """Both publish a directory under one name, the second without having seen the first's."""
    target = f"{VOLUME}/published-{name}"
    with one.hand() as first, two.hand() as second:
        second.ask("sees", f"{target}/file")
        for number, hand in enumerate((first, second)):
            hand.ask("make", f"{VOLUME}/staged-{name}-{number}")
            hand.ask("put", f"{VOLUME}/staged-{name}-{number}/file", str(number))
        answers = [
            hand.ask("move", f"{VOLUME}/staged-{name}-{number}", target)
            for number, hand in enumerate((first, second))
        ]
        seen = [hand.ask("read", f"{target}/file") for hand in (first, second)]
    guest.result(case=name, renames=answers, seen=seen)


def main():
    serve()
    nodes = Node("alpha"), Node("beta")
    for vers, options in OPTIONS.items():
        for node in nodes:
            node.mount(vers, options)
        locks(*nodes, vers)
        renames(*nodes, vers)
        for node in nodes:
            node.umount()
    twins = Node("castor", hostname="twin"), Node("pollux", hostname="twin")
    for node in twins:
        node.mount("4.1")
    locks(*twins, "twins")


main()
