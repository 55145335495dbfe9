"""Renames, which publishing rests on: is one atomic, and does a directory never replace another?

The kernel lets nobody of this node look into a directory while something is renamed into it, so
what is copied instead shows by what it leaves behind: emptied directories, other inodes. Only
another node can see it half-done (`warmer.doctor.together`).
"""

from __future__ import annotations

import errno
import os
import time
from typing import Final

from warmer.doctor import place
from warmer.doctor.child import Child
from warmer.doctor.findings import (
    NO_REPLACE,
    NOT_AS_TAKEN,
    NOT_ATOMIC,
    Finding,
    name_errno,
    of_reader,
)

FILES: Final = 16
"""Files in each directory that is renamed."""

SIZE: Final = 65536
"""Bytes of a file that is replaced."""

_ROUNDS: Final = 10
_REPLACED: Final = 200
_LEAST: Final = 1.0
"""Replacements, and seconds they take at least: a busy machine's reader gets its looks too."""

_BUDGET: Final = 5.0
"""Seconds a slow volume may spend on one of these checks, give or take a round."""

_TAKEN: Final = (errno.ENOTEMPTY, errno.EEXIST)


def publishing(name: str, path: str) -> Finding:
    """Rename a directory to a name that is not there yet; it is the same directory then.

    Raises:
        OSError: the volume failed.
    """
    source, target = os.path.join(path, "staged"), os.path.join(path, "published")
    fill(source)
    descriptor = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor).st_ino
        os.rename(source, target)
        found = len(place.listing(target))
        if found != FILES or os.path.lexists(source):
            text = f"{found} of {FILES} files moved, the old name {_there(source)}"
            return Finding(name, "fail", text, NOT_ATOMIC)
        kept = len(os.listdir(descriptor))
        same = os.stat(target).st_ino == before
    finally:
        os.close(descriptor)
    if kept != FILES:
        found_text = "who has a directory open that is renamed sees it emptied: it was copied"
        return Finding(name, "fail", found_text, NOT_ATOMIC)
    if not same:
        hint = "it may have been copied, which a doctor with --join sees from another node"
        return Finding(name, "warn", "a renamed directory is another inode", hint)
    return Finding(name, "ok", "a directory is renamed as it is")


def no_replacing(name: str, path: str) -> Finding:
    """Rename a directory onto one that is not empty, which must be refused.

    Raises:
        OSError: the volume failed.
    """
    first, second = os.path.join(path, "first"), os.path.join(path, "second")
    for directory in (first, second):
        os.mkdir(directory)
        place.write(os.path.join(directory, os.path.basename(directory)), b"")
    refused: OSError | None = None
    try:
        os.rename(second, first)
    except OSError as exc:
        refused = exc
    untouched = place.listing(first) == ["first"] and place.listing(second) == ["second"]
    if refused is None or not untouched:
        found = "a directory replaced, or was mixed into, one that was there"
        return Finding(name, "fail", found, NO_REPLACE)
    found = f"refused ({name_errno(refused)})"
    if refused.errno not in _TAKEN:
        return Finding(name, "warn", found, NOT_AS_TAKEN)
    return Finding(name, "ok", found)


def replacing_a_file(name: str, path: str) -> Finding:
    """Replace a file over and over while a child reads it.

    Raises:
        OSError: the volume failed.
        VolumeError: as above, met by the child.
    """
    target = os.path.join(path, "target")
    place.write(target, bytes(SIZE))
    with Child("read", target, str(SIZE)) as child:
        child.hear()
        replace(target)
        seen = child.stop()
    return of_reader(name, seen)


def fill(directory: str) -> None:
    """Make a directory with some files in it.

    Raises:
        OSError: the volume failed.
    """
    os.mkdir(directory)
    for number in range(FILES):
        with open(os.path.join(directory, str(number)), "wb") as f:
            f.write(b"x" * 512)


def rename_directories(staging: str, published: str) -> None:
    """Rename directories to the names 0, 1, 2, ... for others to watch.

    Raises:
        OSError: the volume failed.
    """
    began = time.monotonic()
    for number in range(_ROUNDS):
        fill(os.path.join(staging, str(number)))
        os.rename(os.path.join(staging, str(number)), os.path.join(published, str(number)))
        if time.monotonic() - began > _BUDGET:
            return


def replace(target: str) -> None:
    """Replace a file over and over, for others to watch.

    Raises:
        OSError: the volume failed.
    """
    began, number = time.monotonic(), 0
    while number < _REPLACED or time.monotonic() - began < _LEAST:
        with open(f"{target}.new", "wb") as f:
            f.write(bytes([number % 256]) * SIZE)
        os.replace(f"{target}.new", target)
        number += 1
        if time.monotonic() - began > _BUDGET:
            return


def _there(path: str) -> str:
    return "is still there" if os.path.lexists(path) else "is gone"
