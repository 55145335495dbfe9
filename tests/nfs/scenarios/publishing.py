"""Publishes generation after generation on the guest's disk, and says so after each."""

import itertools
import os
import random
import time

import guest
import volumes

from warmer.layout import Volume
from warmer.model import Key
from warmer.observe import numbers


def publish(volume, number, chance):
    """Publish the next generation of a key; returns what the checker will call it."""
    key = Key("weights", {"name": f"org/model-{number}"})
    sizes = [chance.randrange(100_000) for _ in range(chance.randrange(1, 5))]
    files = {f"files/{n % 2}/{n}": chance.randbytes(size) for n, size in enumerate(sizes)}
    taken = numbers.highest_taken(volume, key.kind, key.digest)
    return key.kind, key.digest, volumes.fill(volume, key, files, after=taken)


def main():
    told = guest.args()
    chance = random.Random(told["seed"])  # noqa: S311 - contents, not secrets
    volume = Volume(os.path.join(guest.mount_disk(), "volume"))
    os.makedirs(volume.root, exist_ok=True)
    guest.result(ready=True)
    # The first of them may have been in the making when the power was cut.
    for number in itertools.count(told["first"]):
        guest.result(number=number, acked=publish(volume, number, chance))
        if chance.random() < 0.3:
            old = chance.randrange(number + 1)
            guest.result(number=number, acked=publish(volume, old, chance))
        if chance.random() < 0.5:
            # Nothing else is flushed now: if publishing forgot to, a cut shows it.
            time.sleep(chance.uniform(0, 0.1))


main()
