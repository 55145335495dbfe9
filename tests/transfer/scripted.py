"""What the tests of transfers share: sources whose every read a test decides about, and one fill."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from contextlib import suppress

from volumes import Granted

from warmer.fill import weights
from warmer.fill.progress import Lines
from warmer.fill.sources import SourceFile
from warmer.fill.transfer import Transfer
from warmer.layout import FILES, Volume
from warmer.model import Held, Key, ModelRef
from warmer.settings import Writing

MODEL = ModelRef("hf", "org/scripted", "a" * 40)
KEY = Key("weights", {"model": "scripted"})
ABSENT = Held("absent", "nothing there")


def seeded(seed):
    """Return what makes the same bytes in every run."""
    return random.Random(seed)  # noqa: S311 - nothing is kept secret by it


def sha256(data):
    return {"sha256": hashlib.sha256(data).hexdigest()}


class Scripted:
    """Files in memory; `opening` and `reading` are called first, and may wait or raise.

    `opened` lists every range that was asked for, `delivered` adds up what was read. With `trusted`
    off nothing is said of what the bytes must hash to.
    """

    def __init__(self, contents, *, trusted=True):
        self.contents = contents
        self.trusted = trusted
        self.claims = None  # what it says of its files, where that is not true
        self.opened = []
        self.delivered = 0
        self.opening = self.reading = lambda path, at: None
        self.mutex = threading.Lock()

    @property
    def listed(self):
        if self.claims is not None:
            return self.claims
        digests = sha256 if self.trusted else lambda _: {}
        return tuple(SourceFile(p, len(d), digests(d)) for p, d in sorted(self.contents.items()))

    def resolve(self):
        return MODEL

    def files(self, _model):
        return self.listed

    def describe(self, _model, file):
        return file

    def open(self, _model, file, start, end):
        with self.mutex:
            self.opened.append((file.path, start, end))
        self.opening(file.path, start)
        return _Reader(self, file.path, start, end)


class _Reader:
    digests: dict = {}

    def __init__(self, source, path, start, end):
        self._source, self._path, self._at, self._end = source, path, start, end

    def readinto(self, buffer):
        self._source.reading(self._path, self._at)
        data = self._source.contents[self._path][self._at : min(self._at + len(buffer), self._end)]
        buffer[: len(data)] = data
        self._at += len(data)
        with self._source.mutex:
            self._source.delivered += len(data)
        return len(data)

    def close(self):
        pass


def transfer(source, staging, *, moved=lambda *_: None, connections=4, present=(), **how):
    """Run a transfer of all files; returns what it returns."""
    writing = Writing(**how)
    settled = {"staging": str(staging), "moved": moved, "writing": writing}
    run = Transfer(source, MODEL, connections=connections, **settled)
    return run.run(source.listed, dict(present))


def fill(source, volume, *, grant=None, writing=None, **more):
    """Fill a volume from a source as warmer does, under a grant that holds for ever."""
    return weights.fill(
        Volume(str(volume)),
        KEY,
        model=MODEL,
        source=source,
        wanted=source.listed,
        held=ABSENT,
        after=0,
        grant=grant or Granted(),
        meter=Lines("weights"),
        places=(),
        writing=writing or Writing(),
        **more,
    )


def published(volume):
    """Read every published file: path → bytes."""
    found = {}
    for at, _, names in os.walk(f"{volume}/v1/pieces"):
        for name in names:
            path = os.path.join(at, name)
            if f"/{FILES}/" in path:
                with open(path, "rb") as stream:
                    found[path.split(f"/{FILES}/")[1]] = stream.read()
    return found


def stagings(volume):
    with suppress(FileNotFoundError):
        return sorted(os.listdir(f"{volume}/v1/staging"))
    return []


def descriptors():
    """Name what this process has open below a directory of files."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found
