"""Bytes that need not be fetched: what earlier owners left, and what lies about on the machine.

Nothing is believed: each file is hashed and compared with what the source says, so that files of
which it says nothing are fetched anew. Three kinds of donors:

- finished files of a staging whose owner is gone, and good files of a broken generation. Nobody
  writes to them any more, so that they are linked;
- unfinished files of such a staging. Their owner may be frozen and wake, so that their parts are
  copied, never linked (`warmer.fill.partial`);
- files of a Hugging Face cache or of a folder (`warmer.fill.adopt`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

from warmer import regular
from warmer.errors import IntegrityError, using
from warmer.fill import capacity, clone, partial
from warmer.fill.adopt import sized
from warmer.fill.digests import Hashing, provable
from warmer.layout import FILES
from warmer.seal import SealedFile
from warmer.settings import Writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from warmer.fill.adopt import Donor
    from warmer.fill.sources import Source, SourceFile
    from warmer.model import ModelRef

ADOPTED: Final = "adopted"
_CHUNK: Final = 1 << 20
_THREADS: Final = 4
_TURN: Final = 0.5
_UNREADABLE: Final = (errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM)
"""What a donor on a bad disk or a mount that went away answers; then the file is fetched."""
_PLACE: Final = "the volume"


def hashed(path: str, file: SourceFile) -> SealedFile:
    """Hash a file and compare it with what the source says it is.

    Args:
        path: where it is.
        file: what it should be.

    Raises:
        IntegrityError: its size or a digest differs.
    """
    hashing = Hashing(file.digests, file.size)
    with open(path, "rb", buffering=0) as f, memoryview(bytearray(_CHUNK)) as buffer:
        while count := f.readinto(buffer):
            hashing.update(buffer[:count])
    if hashing.seen != file.size:
        raise IntegrityError(
            f"got {hashing.seen} bytes of {file.path}, expected {file.size}",
            reason="size-mismatch",
            hint="run again; if it stays, the source or a proxy in between is broken",
        )
    hashing.check(file.path, file.digests)
    return SealedFile(f"{FILES}/{file.path}", file.size, hashing.sha256())


def described(
    wanted: Sequence[SourceFile],
    source: Source,
    model: ModelRef,
    donors: Callable[[SourceFile], Iterable[Donor]],
    abandoned: Sequence[str],
) -> list[SourceFile]:
    """Ask what files must hash to that may be there, where the listing does not say it.

    Raises:
        SourceError: the source does not say.
    """

    def there(file: SourceFile) -> bool:
        lying = any(sized(path, file) for path, _ in donors(file))
        return lying or any(partial.spans(old, file) for old in abandoned)

    asked = [f for f in wanted if f.version and not provable(f.digests) and there(f)]
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="describe")
    try:
        told = list(pool.map(lambda file: source.describe(model, file), asked))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    known = {file.path: file for file in told}
    return [known.get(file.path, file) for file in wanted]


def take_over(
    wanted: Sequence[SourceFile],
    donors: Callable[[SourceFile], Iterable[Donor]],
    staging: str,
) -> dict[str, SealedFile]:
    """Put into staging every wanted file that a donor proves to have.

    Args:
        wanted: the files.
        donors: names the places where a file may be, the best first.
        staging: the claim's private directory.

    Returns:
        Path → what is to be sealed.

    Raises:
        VolumeError: the volume failed.
    """
    stop = threading.Event()

    def one(file: SourceFile) -> SealedFile | None:
        with using(_PLACE):
            for path, linkable in donors(file):
                if stop.is_set():
                    return None
                if (sealed := _adopted(file, path, staging, linkable=linkable)) is not None:
                    return sealed
        return None

    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="take over")
    futures: list[Future[SealedFile | None]] = [
        pool.submit(one, file) for file in wanted if provable(file.digests)
    ]
    try:
        pending = set(futures)
        while pending:  # in turns: a signal is only handled between them
            _, pending = wait(pending, timeout=_TURN)
        found = [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return {sealed.path.removeprefix(f"{FILES}/"): sealed for sealed in found if sealed is not None}


def take_over_parts(
    files: Iterable[SourceFile], abandoned: Sequence[str], staging: str, *, root: str
) -> dict[str, tuple[partial.Span, ...]]:
    """Copy the finished parts of files that earlier owners did not finish.

    Args:
        files: the files still missing.
        abandoned: staging directories whose owners are gone.
        staging: the claim's own.
        root: of the volume; what a link below it leads to is not taken.

    Returns:
        Path → runs of bytes that are there now, unproved until the whole file is hashed.

    Raises:
        VolumeError: the volume failed.
    """
    present: dict[str, tuple[partial.Span, ...]] = {}
    with using(_PLACE):
        for file in files:
            if not provable(file.digests):
                continue
            left = [
                (partial.spans(old, file), partial.place(old, file.path))
                for old in abandoned
                if not led_away(root, partial.place(old, file.path))
            ]
            spans, path = max(left, key=lambda one: partial.total(one[0]), default=((), ""))
            if spans and _copied(path, file, spans, staging):
                present[file.path] = spans
    return present


def led_away(top: str, path: str) -> bool:
    """Whether a link leads from below `top` to the path: the file may be anybody's."""
    while path != top:
        if os.path.islink(path):
            return True
        path = os.path.dirname(path)
    return False


def _copied(path: str, file: SourceFile, spans: Sequence[partial.Span], staging: str) -> bool:
    try:
        source = regular.opened(path)
    except (OSError, regular.OddFileError):
        return False
    output = partial.Partial(staging, file, Writing())
    try:
        if not clone.reflink(source, output.descriptor):
            if capacity.free(staging) < partial.total(spans) + capacity.RESERVE:
                return False  # fetched again, when the old ones are gone
            for start, end in spans:
                clone.copy(source, output.descriptor, start, end)
        os.ftruncate(output.descriptor, file.size)
        for span in spans:
            output.written(span)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # No room for both: the old one goes, or no run would ever get past it.
        output.discard()
        return False
    finally:
        os.close(source)
        output.close()
    return True


def _adopted(file: SourceFile, path: str, staging: str, *, linkable: bool) -> SealedFile | None:
    """Share or copy one donor's file, then hash what came of it; None where it is not the one."""
    target = os.path.join(staging, FILES, file.path)
    fresh = os.path.join(staging, ADOPTED, hashlib.sha256(os.fsencode(file.path)).hexdigest())
    os.makedirs(os.path.dirname(fresh), exist_ok=True)
    try:
        source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        info = os.fstat(source)
        if not stat.S_ISREG(info.st_mode) or info.st_size != file.size:
            return None
        # Whoever may read what is fetched must be able to read what is linked.
        readers = os.stat(staging).st_mode & 0o444
        linkable = linkable and readers & info.st_mode == readers
        _share(path, source, fresh, linkable=linkable)
        sealed = hashed(fresh, file)
    except IntegrityError:
        os.unlink(fresh)
        return None
    except OSError as exc:
        if exc.errno not in _UNREADABLE:
            raise
        return None
    finally:
        os.close(source)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.rename(fresh, target)
    return sealed


def _share(path: str, source: int, fresh: str, *, linkable: bool) -> None:
    """Make a donor's file appear: with its blocks, else as a link where it is safe, else copied."""
    target = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        if clone.reflink(source, target) or (linkable and _linked(path, source, fresh)):
            return
        clone.copy(source, target, 0, os.fstat(source).st_size)
    finally:
        os.close(target)


def _linked(path: str, source: int, fresh: str) -> bool:
    """Link the file that was opened; False where there are no links, or the name moved on."""
    link = f"{fresh}.link"
    with contextlib.suppress(OSError):
        os.link(os.path.realpath(path), link)
        mine, named = os.fstat(source), os.lstat(link)
        if (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino):
            os.rename(link, fresh)
            return True
        os.unlink(link)
    return False
