"""A pod on a node: fills every key that is missing, as warmer does, and says what came of each."""

import hashlib
import json
import os
import random
import sys
import time

import structlog

from warmer.errors import BusyError
from warmer.fill import publish, stagings
from warmer.fill.claim import Claims
from warmer.fill.locks import LostGrantError
from warmer.fill.locks.file import FileLock
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.observe import inventory, numbers
from warmer.seal import SealedFile
from warmer.trust import ANYBODY

CHUNK = 1 << 14


def say(**what):
    os.write(1, json.dumps(what).encode() + b"\n")


def stage(volume, key, grant, chance):
    """Write a few files slowly, telling the lock how far it is, as a download does."""
    staging = stagings.name(volume, key)
    try:
        stagings.make(staging)
        sealed = []
        for number in range(3):
            data = chance.randbytes(CHUNK * chance.randrange(1, 5))
            path = f"files/{number}"
            os.makedirs(os.path.join(staging.path, "files"), exist_ok=True)
            with open(os.path.join(staging.path, path), "wb") as f:
                for at in range(0, len(data), CHUNK):
                    f.write(data[at : at + CHUNK])
                    grant.note("downloading", at, len(data))
                    time.sleep(0.3)  # the wire
            sealed.append(SealedFile(path, len(data), hashlib.sha256(data).hexdigest()))
    except BaseException:
        stagings.discard(staging)
        raise
    return staging, sealed


def fill(volume, key, claims, chance):
    """Fill one key; returns what came of it."""

    def filled():
        seen = inventory.observe(
            volume, WarmDir("/nowhere"), {"weights": key}, neighbours=False, trust=ANYBODY
        )
        return seen.held["weights"].verdict == "sealed"

    try:
        with claims.claim(key, wait=120, filled=filled) as grant:
            if grant is None:
                return "there"
            say(key=key.digest, holds=grant.epoch)
            after = numbers.highest_taken(volume, key.kind, key.digest)
            staging, sealed = stage(volume, key, grant, chance)
            try:
                how = {
                    "grant": grant,
                    "after": after,
                    "source": "chaos",
                    "seconds": 1.0,
                    "trust": ANYBODY,
                }
                publish.publish(volume, staging, files=sealed, **how)
            except BaseException:
                stagings.discard(staging)
                raise
            return "published"
    except LostGrantError:
        return "lost the lock"
    except publish.LostRaceError:
        return "lost the race"
    except BusyError:
        return "busy"


def main():
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    root, name, keys, lease = json.loads(sys.argv[1])
    chance = random.Random()  # noqa: S311 - which key first, and what is in it
    volume = Volume(root)
    me = f"{name}/{os.getpid()}"
    claims = Claims(lambda: FileLock(volume, me=me, lease=lease))
    wanted = [Key("weights", {"name": f"org/model-{number}"}) for number in range(keys)]
    while wanted:
        key = chance.choice(wanted)
        came = fill(volume, key, claims, chance)
        say(key=key.digest, came=came)
        if came in ("there", "published"):
            wanted.remove(key)


main()
