"""Blobs into a staging directory, side by side; each is proved while it arrives."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from warmer.errors import using

if TYPE_CHECKING:
    from collections.abc import Sequence

    from warmer.fill.locks import Grant
    from warmer.fill.remote.bucket import Bucket
    from warmer.seal import SealedFile

_SIDE_BY_SIDE: Final = 4
_TURN: Final = 0.1


def fetch(bucket: Bucket, files: Sequence[SealedFile], staging: str, grant: Grant) -> None:
    """Fetch all files of a piece.

    Args:
        bucket: where from.
        files: of the piece.
        staging: an empty directory on the volume.
        grant: the lock; told how far it is.

    Raises:
        SourceError: the service failed or refused; `not-found` where a blob is gone.
        IntegrityError: a blob has other bytes than its name says.
        VolumeError: the volume failed.
        LostGrantError: the lock was lost.
    """
    fetching = _Fetching(bucket, files, staging, grant)
    # Nobody waits for those that still read when one has failed, or the prefill is to end.
    threads = [
        threading.Thread(target=fetching.run, name="pull", daemon=True)
        for _ in range(min(_SIDE_BY_SIDE, len(files)))
    ]
    try:
        for thread in threads:
            thread.start()
        while not fetching.failures and any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(_TURN)
    finally:
        fetching.stop.set()
    if fetching.failures:
        raise fetching.failures[0]


class _Fetching:
    """What the threads of one fetch share."""

    def __init__(
        self, bucket: Bucket, files: Sequence[SealedFile], staging: str, grant: Grant
    ) -> None:
        self.stop = threading.Event()
        self.failures: deque[BaseException] = deque()
        self._bucket = bucket
        self._left = deque(files)
        self._staging = staging
        self._grant = grant
        self._total = sum(file.size for file in files)
        self._done = 0
        self._mutex = threading.Lock()

    def run(self) -> None:
        """Fetch one file after the other, until none is left or one has failed."""
        while not self.stop.is_set():
            try:
                file = self._left.popleft()
            except IndexError:
                return
            try:
                self._fetch(file)
            except BaseException as exc:  # noqa: BLE001 - it is raised where it is waited for
                self.failures.append(exc)
                return

    def _fetch(self, file: SealedFile) -> None:
        path = os.path.join(self._staging, file.path)
        with using("the volume"), open(path, "xb") as output:

            def write(data: memoryview) -> None:
                if self.stop.is_set():
                    raise _StoppedError
                output.write(data)
                self._note(len(data))

            self._bucket.read(file, write)

    def _note(self, count: int) -> None:
        with self._mutex:
            self._done += count
            done = self._done
        self._grant.note("pulling", done, self._total)


class _StoppedError(Exception):
    """Another file failed: this one is not wanted any more."""
