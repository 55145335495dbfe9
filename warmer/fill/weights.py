"""Fill the weights piece: fetch what is missing, verify every byte, publish.

Finished files of a staging whose owner was killed, and good files of a broken generation, are
verified and taken over, not fetched again. Every file is hashed
and compared with what the source says before it counts as finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

from warmer.errors import IntegrityError, VolumeError, using
from warmer.fill import publish
from warmer.layout import FILES
from warmer.observe import inventory
from warmer.seal import SealedFile, safe_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from warmer.fill.locks import Grant
    from warmer.fill.sources import Source, SourceFile
    from warmer.layout import Volume
    from warmer.model import Held, Key, ModelRef

_CHUNK: Final = 1 << 20
_CONNECTIONS: Final = 4
_DOWNLOAD: Final = "download"
_TURN: Final = 0.5
"""Seconds a wait for downloads lasts before it looks up."""
_RESERVE: Final = 64 << 20
"""Bytes left free beyond the plan: seals, kernels, other pods' small writes."""


def fill(
    volume: Volume,
    key: Key,
    *,
    model: ModelRef,
    source: Source,
    held: Held,
    grant: Grant,
    progress: Callable[[int, int], None],
) -> int:
    """Fill the weights of one model under its grant.

    Args:
        volume: where to.
        key: the piece.
        model: the resolved revision.
        source: where from.
        held: what the volume holds now; good files of a broken generation are taken over.
        grant: the lock on the key.
        progress: called with (bytes done, bytes in all), from several threads.

    Returns:
        The generation published.

    Raises:
        SourceError: the source failed.
        IntegrityError: bytes are not what the source says.
        VolumeError: the volume failed, or is too small for the whole model.
        BusyError: the grant or the race was lost; nothing was published.
    """
    started = time.monotonic()
    with using("the volume"):
        after = inventory.highest_taken(volume, key.kind, key.digest)
    wanted = source.files(model)
    _refuse_paths(wanted)
    old = publish.abandoned(volume, key)
    staging = publish.begin(volume, key)
    try:
        donors = [os.path.join(path, FILES) for path in old]
        if held.generation:
            published = volume.generation(key.kind, key.digest, held.generation)
            donors.append(os.path.join(published, FILES))
        with using("the volume"):
            done = _take_over(wanted, donors, os.path.join(staging.path, FILES))
        missing = [file for file in wanted if file.path not in done]
        _reserve(volume, missing)
        _fetch_all(source, model, missing, staging=staging.path, done=done, progress=progress)
        source.files(model)  # a directory must still be what it was when the copy began
        number = publish.publish(
            volume,
            staging,
            files=done.values(),
            grant=grant,
            after=after,
            source=str(model),
            seconds=time.monotonic() - started,
        )
    except BaseException:
        publish.discard(staging)
        raise
    for path in old:
        publish.discard(publish.Staging(path, key, ""))
    return number


def missing_bytes(volume: Volume, key: Key, wanted: Iterable[SourceFile], held: Held) -> int:
    """Count the bytes a fill would fetch: all, less what a broken generation still has.

    Files are taken at their sizes; the fill itself hashes them.
    """
    good: dict[str, int] = {}
    if held.generation:
        top = os.path.join(volume.generation(key.kind, key.digest, held.generation), FILES)
        for file in wanted:
            with contextlib.suppress(OSError):
                good[file.path] = os.stat(os.path.join(top, file.path)).st_size
    return sum(file.size for file in wanted if good.get(file.path) != file.size)


def _fetch_all(
    source: Source,
    model: ModelRef,
    missing: Sequence[SourceFile],
    *,
    staging: str,
    done: dict[str, SealedFile],
    progress: Callable[[int, int], None],
) -> None:
    """Fetch and verify files, a few at a time; the first failure stops the rest."""
    total = sum(file.size for file in missing)
    stop = threading.Event()
    counter = _Counter(total, progress, stop)

    def one(file: SourceFile) -> SealedFile:
        private = os.path.join(
            staging, _DOWNLOAD, hashlib.sha256(os.fsencode(file.path)).hexdigest()
        )
        counter.add(0)
        with using("the volume"):
            os.makedirs(private)
            target = os.path.join(private, os.path.basename(file.path))
            source.fetch(model, file, target, counter.add)
            sealed = verify(target, file)
            _move(target, os.path.join(staging, FILES, file.path))
        return sealed

    pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="fetch")
    futures: list[Future[SealedFile]] = [pool.submit(one, file) for file in missing]
    pending = set(futures)
    try:
        while pending:  # in turns: a signal is only handled between them
            finished, pending = wait(pending, timeout=_TURN, return_when=FIRST_EXCEPTION)
            for sealed in (future.result() for future in finished):
                done[sealed.path.removeprefix(f"{FILES}/")] = sealed
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait(futures, timeout=_TURN)
    with using("the volume"):
        _remove_downloads(os.path.join(staging, _DOWNLOAD))


def verify(path: str, file: SourceFile) -> SealedFile:
    """Hash a file and compare it with what the source says it is.

    Raises:
        IntegrityError: its size or hash differs.
    """
    size = os.stat(path).st_size
    if size != file.size:
        raise IntegrityError(
            f"got {size} bytes of {file.path}, expected {file.size}",
            reason="size-mismatch",
            hint="run again; if it stays, the source or a proxy in between is broken",
        )
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            sha256.update(chunk)
            if file.git_sha1 and not file.sha256:
                git.update(chunk)
    for name, got, expected in (
        ("sha256", sha256.hexdigest(), file.sha256),
        ("git blob hash", git.hexdigest(), None if file.sha256 else file.git_sha1),
    ):
        if expected and got != expected:
            raise IntegrityError(
                f"got {file.path} with {name} {got}, expected {expected}",
                reason="hash-mismatch",
                hint="run again; if it stays, the source or a proxy in between is broken",
            )
    return SealedFile(f"{FILES}/{file.path}", size, sha256.hexdigest())


def _take_over(
    wanted: Sequence[SourceFile], donors: Sequence[str], target: str
) -> dict[str, SealedFile]:
    """Link files that are already on the volume and prove to be the wanted ones."""
    done: dict[str, SealedFile] = {}
    for donor in donors:
        for file in wanted:
            path = os.path.join(donor, file.path)
            if file.path in done or not os.path.isfile(path) or os.path.islink(path):
                continue
            if not (file.sha256 or file.git_sha1):
                continue  # nothing to prove it by: it is fetched anew
            try:
                sealed = verify(path, file)
            except IntegrityError:
                continue
            place = os.path.join(target, file.path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            try:
                os.link(path, place)
            except OSError:  # no hard links here, or too many: fetch it anew
                continue
            done[file.path] = sealed
    return done


def _reserve(volume: Volume, missing: Sequence[SourceFile]) -> None:
    need = sum(file.size for file in missing) + _RESERVE
    with using("the volume"):
        info = os.statvfs(volume.root)
    free = info.f_bavail * info.f_frsize
    if need > free:
        raise VolumeError(
            f"got {free} bytes free on the volume, expected {need}: {need - free} too few",
            reason="no-space",
            hint="free space on it, or give it more",
        )


def _refuse_paths(files: Sequence[SourceFile]) -> None:
    for file in files:
        if not safe_path(file.path):
            raise IntegrityError(
                f"got the path {file.path!r} from the source, expected one inside the model",
                reason="unsafe-path",
            )


def _move(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.rename(source, target)


def _remove_downloads(path: str) -> None:
    for directory, names, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(directory, name))
        for name in names:
            os.rmdir(os.path.join(directory, name))
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


class _StoppedError(BaseException):
    """Another file's failure, or a signal, ended this download; no handler of failures sees it."""


class _Counter:
    """Adds up bytes from several threads, and stops them."""

    def __init__(
        self, total: int, progress: Callable[[int, int], None], stop: threading.Event
    ) -> None:
        self._total = total
        self._progress = progress
        self._stop = stop
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        with self._lock:
            self._done += count
            done = self._done
        self._progress(done, self._total)
