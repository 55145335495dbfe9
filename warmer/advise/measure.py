"""What a volume and a source really give, tried with a sample of bounded size and time.

The sample on the volume lies in a directory of its own, which is removed however this ends, and is
read past this node's page cache. The server's own cache may still have it: a rate that is too good
to be true is the server's memory. From the source come ranges of the model's largest file, by the
same requests that a prefill makes.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from warmer.doctor import place
from warmer.errors import SourceError, VolumeError, using
from warmer.quantities import show_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from warmer.fill.sources import Source, SourceFile
    from warmer.layout import Volume
    from warmer.model import ModelRef

STREAMS: Final = 4
"""Readers side by side, as a prefill has several connections."""
SMALLEST: Final = 1 << 20
LARGEST: Final = 16 << 30
"""Bytes of a sample."""

_LONGEST: Final = 30.0
"""Seconds after which a sample is cut short; the rate is of what passed until then."""
_CHUNK: Final = 4 << 20
_PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast it went.

    Attributes:
        size: bytes that passed.
        seconds: that it took.
        how: for people.
    """

    size: int
    seconds: float
    how: str

    @property
    def value(self) -> float:
        """Bytes per second."""
        return self.size / self.seconds


def volume(root: Volume, sample: int) -> tuple[Rate, Rate]:
    """Write a sample to a volume, and read it past the page cache.

    Returns:
        How fast it was written, flushed, and read.

    Raises:
        VolumeError: the volume failed, or has no room.
    """
    sample -= sample % _PAGE
    with using(place.VOLUME):
        info = os.statvfs(root.root)
        free = info.f_bavail * info.f_frsize
    if info.f_blocks and free < 2 * sample:  # some, behind FUSE for one, do not know
        raise VolumeError(
            f"got {free} bytes free on the volume, expected twice the sample of {sample}",
            reason="no-space",
            hint="give a smaller --sample",
        )
    others = place.others(root)
    with place.private(root) as directory, using(place.VOLUME):
        place.remove_old(root, others, newer=directory)
        path = os.path.join(directory, "sample")
        written = _write(path, sample)
        descriptor, direct = _open(path)
        os.close(descriptor)
        size, seconds = _together(written.size, functools.partial(_read, path))
    cache = "past the page cache" if direct else "after the page cache was asked to forget it"
    return written, Rate(size, seconds, f"{show_bytes(size)}, {STREAMS} readers, {cache}")


def source(origin: Source, model: ModelRef, files: Sequence[SourceFile], sample: int) -> Rate:
    """Fetch the beginning of a model's largest file, and forget it.

    Raises:
        SourceError: the source failed, or gave nothing in time.
    """
    largest = max(files, key=lambda file: file.size)
    sample = min(sample, largest.size)

    def fetch(start: int, end: int, going: Callable[[], bool]) -> int:
        if start >= end:
            return 0
        reader = origin.open(model, largest, start, end)
        buffer, got = memoryview(bytearray(_CHUNK)), 0
        try:
            while going() and (count := reader.readinto(buffer)):
                got += count
        finally:
            reader.close()
        return got

    size, seconds = _together(sample, fetch)
    if not size:
        raise SourceError(
            f"got no byte of {largest.path} in {seconds:.0f} s, expected some",
            reason="too-slow",
            hint="is the source reachable from here, and the model not empty?",
        )
    return Rate(size, seconds, f"{show_bytes(size)} of {largest.path}, {STREAMS} connections")


def _write(path: str, sample: int) -> Rate:
    """Write noise, which no filesystem can compress, and flush it; its making is not timed."""
    spent, size = 0.0, 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        while size < sample and spent < _LONGEST:
            data = memoryview(os.urandom(min(_CHUNK, sample - size)))
            began = time.monotonic()
            while data:
                count = os.write(descriptor, data)
                data, size = data[count:], size + count
            spent += time.monotonic() - began
        began = time.monotonic()
        os.fsync(descriptor)
        spent += time.monotonic() - began
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return Rate(size, max(spent, 1e-6), "one writer, flushed")


def _open(path: str) -> tuple[int, bool]:
    """Open for reading past the page cache, where the filesystem knows how; one page is tried."""
    direct = -1
    try:
        direct = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        with mmap.mmap(-1, _PAGE) as page:
            os.preadv(direct, [page], 0)
    except OSError as exc:
        if direct >= 0:
            os.close(direct)
        if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
    return direct, True


def _read(path: str, start: int, end: int, going: Callable[[], bool]) -> int:
    """Read a part; each reader has a descriptor of its own, and may outlast who waits for it."""
    got = 0
    descriptor, _ = _open(path)
    try:
        with mmap.mmap(-1, _CHUNK) as pages:  # O_DIRECT wants memory that starts at a page
            while start < end and going():
                with memoryview(pages) as view, view[: min(_CHUNK, end - start)] as wanted:
                    count = os.preadv(descriptor, [wanted], start)
                if not count:
                    break
                start, got = start + count, got + count
    finally:
        os.close(descriptor)
    return got


def _together(
    sample: int, work: Callable[[int, int, Callable[[], bool]], int]
) -> tuple[int, float]:
    """Deal a sample out to threads; they stop at the deadline, or when one of them fails."""
    part = -(-sample // STREAMS // _PAGE) * _PAGE
    spans = [(min(n * part, sample), min((n + 1) * part, sample)) for n in range(STREAMS)]
    stop = threading.Event()
    began = time.monotonic()

    def going() -> bool:
        return not stop.is_set() and time.monotonic() - began < _LONGEST

    pool = ThreadPoolExecutor(STREAMS)
    try:
        futures = [pool.submit(work, start, end, going) for start, end in spans]
        size = sum(future.result() for future in futures)
        seconds = time.monotonic() - began
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return size, max(seconds, 1e-6)
