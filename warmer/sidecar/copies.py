"""Copies of live trees: of what was seen and nothing else, without touching them.

A server may read and write its trees at any time. A file that is not what a look had seen is no
copy of anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from warmer import families
from warmer.fill import clone, members

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warmer.layout import WarmDir
    from warmer.model import Kind

_REPLACED: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What opening a file is answered with that was there a moment ago."""


class ChangedError(Exception):
    """A tree changed while it was read; nothing of it is published."""


class State(NamedTuple):
    """What tells that a file was changed: inode, size, and both times in ns."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


Trees = dict[tuple["Kind", str], State]
"""Every file of the trees, by kind and path."""


def look(warm: WarmDir, kinds: Iterable[Kind]) -> Trees:
    """Take a snapshot of the trees.

    Raises:
        OSError: the warm dir failed.
    """
    return {
        (kind, path): _state(info)
        for kind in kinds
        for path, info in members.walk(warm.tree(kind), families.excluded(kind))
        if info is not None
    }


def sweep(warm: WarmDir) -> None:
    """Remove the copies of a harvest that ended or was killed; the caller is the only sidecar."""
    with contextlib.suppress(OSError):
        if os.path.islink(warm.harvest):  # as a server could that is no friend
            os.unlink(warm.harvest)
    shutil.rmtree(warm.harvest, ignore_errors=True)


def copy(tree: str, target: str, kind: Kind, seen: Trees) -> None:
    """Copy a tree's files with their modes and times, where they are what was seen.

    Raises:
        ChangedError: a file is another one.
        OSError: from either side.
    """
    os.makedirs(target)
    top = os.path.realpath(tree)
    for path, info in members.walk(tree, families.excluded(kind)):
        place = os.path.join(target, path)
        if info is None:
            os.makedirs(place, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(place), exist_ok=True)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            source = os.open(os.path.join(top, path), flags)
        except OSError as exc:
            if exc.errno not in _REPLACED:
                raise
            raise ChangedError(f"{path} is gone") from exc
        try:
            now = os.fstat(source)
            # Not by way of a link that was put in a directory's place: what it led to is not ours.
            real = os.readlink(f"/proc/self/fd/{source}") == os.path.join(top, path)
            if not real or not stat.S_ISREG(now.st_mode) or _state(now) != seen.get((kind, path)):
                raise ChangedError(f"{path} is not what it was")
            _copy_file(source, place, now)
        finally:
            os.close(source)


def _copy_file(source: int, place: str, info: os.stat_result) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    target = os.open(place, flags, 0o600)
    try:
        if not clone.reflink(source, target):
            clone.copy(source, target, 0, info.st_size)
        os.fchmod(target, stat.S_IMODE(info.st_mode) & 0o777)
        os.utime(target, ns=(info.st_mtime_ns, info.st_mtime_ns))
    finally:
        os.close(target)


def _state(info: os.stat_result) -> State:
    return State(info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
