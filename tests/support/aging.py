"""Volumes that have been there for a while: times set back, as if the server's clock had gone on."""

import os
import time
from pathlib import Path

DAY = 86400.0


def age(path, days):
    """Set the time of a file, or of all below a directory, back by so many days from now."""
    at = time.time() - days * DAY
    paths = [path]
    if os.path.isdir(path):
        paths += [os.path.join(top, name) for top, d, f in os.walk(path) for name in d + f]
    for one in paths:
        os.utime(one, (at, at), follow_symlinks=False)


def age_all(volume, days):
    """Let a volume lie about for days: everything on it is that old."""
    age(os.path.join(volume, "v1"), days)


def records(volume):
    """The records of use on a volume."""
    return sorted(Path(volume, "v1", "uses").glob("*.json"))


def names(volume, place):
    """What lies in a directory of the volume."""
    top = os.path.join(volume, "v1", place)
    return sorted(os.listdir(top)) if os.path.isdir(top) else []
