"""A node that for a while does not see what others renamed into place.

``python late.py DIRECTORY POINT ERRNO ASKS`` mounts DIRECTORY until it is unmounted. Each generation
that appears there by another's hand answers the first ASKS questions with ERRNO. They are counted,
not timed: no load of the machine shows a name early.
"""

import errno
import os
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "doctor"))

import liar
import mfusepy

GENERATION = re.compile(r"/v1/pieces/[^/]+/[^/]+/[0-9]+")


class Late(liar.Liar):
    def __init__(self, root, error, asks):
        super().__init__(root)
        self._error, self._asks = error, asks
        self._asked = Counter()
        self._known = {str(at)[len(root) :] for at in Path(root).glob("v1/pieces/*/*/*")}

    def _look(self, path):
        found = GENERATION.match(path)
        if not found or found[0] in self._known or not os.path.lexists(self._at(found[0])):
            return
        self._asked[found[0]] += 1
        if self._asked[found[0]] <= self._asks:
            raise mfusepy.FuseOSError(self._error)

    def getattr(self, path, fh=None):
        self._look(path)
        return super().getattr(path, fh)

    def open(self, path, flags):
        self._look(path)
        return super().open(path, flags)

    def readdir(self, path, fh):
        """A name that is late is not listed; one that is stale is."""
        shown = [(name, None, 0) for name in (".", "..")]
        for name in os.listdir(self._at(path)):
            try:
                self._look(f"{path}/{name}")
            except mfusepy.FuseOSError as exc:
                if exc.errno == errno.ENOENT:
                    continue
            shown.append((name, None, 0))
        return shown

    def rename(self, old, new):
        super().rename(old, new)
        self._known.add(new)


if __name__ == "__main__":
    root, point, error, asks = sys.argv[1:]
    late = Late(root, int(error), int(asks))
    mfusepy.FUSE(late, point, foreground=True, fsname="late", use_ino=True)
