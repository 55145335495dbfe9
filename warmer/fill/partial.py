"""A file that is being fetched: bytes written at their offsets, and a journal of finished parts.

On disk, in a private staging: ``partial/<id>`` and ``partial/<id>.parts``, where the id is the
sha256 of the file's path. The journal has a line ``<start> <end>`` for every part whose bytes were
written; it is appended to and never flushed. After a kill it is right, because the kernel keeps
what a dead process wrote. After a power cut it may promise bytes that were lost, so only files
whose digest is known are taken up again: the digest settles it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import threading
from typing import TYPE_CHECKING, Final

from warmer import regular
from warmer.errors import VolumeError
from warmer.layout import FILES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warmer.fill.sources import SourceFile
    from warmer.settings import Writing

PARTIAL: Final = "partial"
_LINE: Final = re.compile(rb"^(\d{1,18}) (\d{1,18})\n", re.MULTILINE)

_JOURNAL: Final = 16 << 20
"""Bytes of a journal at most; a part is megabytes and its line is forty bytes."""

_ALIGNED: Final = 4096
"""What O_DIRECT wants offsets and lengths to be multiples of, on every filesystem there is."""

_SYNC_FILE_RANGE_WRITE: Final = 2

Span = tuple[int, int]
"""Start and end of a run of bytes."""


def place(staging: str, path: str) -> str:
    """Where a file of this path is while it is fetched."""
    return os.path.join(staging, PARTIAL, hashlib.sha256(os.fsencode(path)).hexdigest())


class Partial:
    """The file and its journal, open for writing.

    Args:
        staging: the claim's private directory.
        file: which file of the source.
        writing: how.

    Raises:
        OSError: it could not be made.
        VolumeError: the filesystem cannot write past the page cache.
    """

    def __init__(self, staging: str, file: SourceFile, writing: Writing) -> None:
        self.path = place(staging, file.path)
        self._writing = writing
        self._mutex = threading.Lock()
        self._journal = self._direct = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.descriptor = os.open(self.path, flags, 0o666)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self.descriptor = os.open(self.path, flags, 0o666)
        try:
            os.ftruncate(self.descriptor, file.size)
            if writing.direct:
                self._direct = _open_direct(self.path)
        except BaseException:
            self.close()
            raise

    def write(self, data: memoryview, at: int) -> None:
        """Write bytes at their offset; called from several threads.

        Args:
            data: from the start of a page of memory.
            at: where to.
        """
        whole = len(data) - len(data) % _ALIGNED if self._direct >= 0 and not at % _ALIGNED else 0
        if whole:
            _write(self._direct, data[:whole], at)
        _write(self.descriptor, data[whole:], at + whole)

    def written(self, span: Span) -> None:
        """Note that a part is there, and have the disk begin with it. Called from several threads.

        The first part makes the journal: thousands of files that are a part each need none, and
        where files come and go ext4 is slow to find a place for the next.
        """
        with self._mutex:
            if self._journal < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
                self._journal = os.open(f"{self.path}.parts", flags, 0o666)
        os.write(self._journal, b"%d %d\n" % span)
        _begin_flush(self.descriptor, span)

    def close(self) -> None:
        """Close both."""
        for descriptor in (self.descriptor, self._journal, self._direct):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self._journal = self._direct = -1

    def finish(self, target: str) -> None:
        """Flush the whole file and give it its name; nobody writes to it from here on."""
        os.fsync(self.descriptor)
        if not self._writing.keep_cached:
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self.close()
        try:
            os.rename(self.path, target)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.rename(self.path, target)
        self._forget()

    def discard(self) -> None:
        """Remove both."""
        self.close()
        os.unlink(self.path)
        self._forget()

    def start_over(self) -> None:
        """Forget every part: what was taken over is not what the source has."""
        with contextlib.suppress(FileNotFoundError):
            os.truncate(f"{self.path}.parts", 0)

    def _forget(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.path}.parts")


def _begin_flush(descriptor: int, span: Span) -> None:
    """Have the kernel begin to write a run of bytes back: else it begins when all are to be flushed.

    Nobody waits for it, and a failure is told by the flush at the end.
    """
    offset, length = ctypes.c_int64(span[0]), ctypes.c_int64(span[1] - span[0])
    ctypes.CDLL(None).sync_file_range(descriptor, offset, length, _SYNC_FILE_RANGE_WRITE)


def spans(staging: str, file: SourceFile) -> tuple[Span, ...]:
    """Read which runs of bytes an earlier owner wrote, merged and in order."""
    path = place(staging, file.path)
    try:
        journal = regular.read(f"{path}.parts", most=_JOURNAL)
        found = [(int(a), int(b)) for a, b in _LINE.findall(journal)]
        size = os.stat(path).st_size
    except (OSError, regular.OddFileError):
        return ()
    return merge((a, b) for a, b in found if a < b <= min(size, file.size))


def resumable(staging: str) -> bool:
    """Whether a staging has a finished file, or a finished part of one."""
    for top in (FILES, PARTIAL):
        for directory, _, names in os.walk(os.path.join(staging, top)):
            for name in names:
                if top == FILES or (
                    name.endswith(".parts") and os.stat(os.path.join(directory, name)).st_size
                ):
                    return True
    return False


def merge(found: Iterable[Span]) -> tuple[Span, ...]:
    """Merge runs that touch or overlap."""
    merged: list[Span] = []
    for start, end in sorted(found):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(merged)


def total(found: Iterable[Span]) -> int:
    """Bytes in runs that do not overlap."""
    return sum(end - start for start, end in found)


def gaps(found: Iterable[Span], size: int) -> tuple[Span, ...]:
    """What is missing of a file."""
    missing: list[Span] = []
    at = 0
    for start, end in merge(found):
        if start > at:
            missing.append((at, start))
        at = end
    if at < size:
        missing.append((at, size))
    return tuple(missing)


def _open_direct(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        raise VolumeError(
            "got --direct on a filesystem that refuses it, expected one that takes O_DIRECT",
            reason="no-direct",
            hint="leave out --direct",
        ) from exc


def _write(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count
