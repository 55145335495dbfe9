"""Move files of a source into a staging: several connections, every byte written and hashed once.

A file is fetched in parts, each part over one connection, through one small buffer that stays in
the processor's cache, to its place in a file that has its full length from the start. Connections
take up whole files first and then help with the files that are left, so that nearly all bytes
arrive in order and are hashed as they pass; bytes that came early are read back, from the page
cache, when those before them are there.

A file gets its name when all its bytes are flushed and hash to what the source says.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from warmer.errors import IntegrityError, using
from warmer.fill import partial
from warmer.fill.digests import Hashing, quickest
from warmer.layout import FILES
from warmer.seal import SealedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from warmer.fill.sources import Reader, Source, SourceFile
    from warmer.model import ModelRef
    from warmer.settings import Writing

PART: Final = 32 << 20
"""Bytes of a part: enough that a request costs nothing beside it, little to fetch again."""
BUFFER: Final = 256 << 10
"""Bytes of a connection's buffer: socket to page cache through the processor's cache."""
_PLACE: Final = "the volume"
_TURN: Final = 0.5
"""Seconds a wait for the connections lasts before it looks up; a signal is handled between two."""
_END: Final = 5.0
"""Seconds given to connections to notice that they are to stop."""


class _StoppedError(BaseException):
    """Another connection's failure, or a signal, ended this one; no handler of failures sees it."""


class _Fetch:
    """One file on its way."""

    def __init__(
        self, file: SourceFile, output: partial.Partial, present: Sequence[partial.Span]
    ) -> None:
        self.file = file
        self.output = output
        self.digests: dict[str, str] = dict(file.digests)
        self.taken_over = bool(present)
        self._begin(present)

    def _begin(self, present: Sequence[partial.Span]) -> None:
        # Of bytes that lay about, every digest is asked; of a connection's, one.
        names = self.digests if present else quickest(self.digests)
        self.hashing = Hashing(names, self.file.size)
        self.todo = deque(_parts(partial.gaps(present, self.file.size)))
        self.left = len(self.todo)
        self.there = list(present)
        self.busy = False
        """Whether some thread feeds `hashing`."""

    def start_over(self) -> None:
        """What an earlier owner left is not what the source has: fetch all of it."""
        self.taken_over = False
        self._begin(())


def _parts(gaps: Sequence[partial.Span]) -> list[partial.Span]:
    return [(at, min(at + PART, end)) for start, end in gaps for at in range(start, end, PART)]


class Transfer:
    """One run of connections.

    Args:
        source: where from; it retries.
        model: the resolved revision.
        staging: the claim's private directory.
        moved: called with a path and the bytes of it that arrived, from several threads; may
            raise to stop everything.
        writing: how files are written.
        connections: how many at a time.
    """

    def __init__(
        self,
        source: Source,
        model: ModelRef,
        *,
        staging: str,
        moved: Callable[[str, int], None],
        writing: Writing,
        connections: int,
    ) -> None:
        self._source = source
        self._model = model
        self._staging = staging
        self._moved = moved
        self._writing = writing
        self._connections = connections
        self._mutex = threading.Condition()
        self._opening = 0
        self._waiting: deque[tuple[SourceFile, tuple[partial.Span, ...]]] = deque()
        self._open: list[_Fetch] = []
        self._outputs: list[partial.Partial] = []
        self._done: dict[str, SealedFile] = {}
        self._failure: BaseException | None = None
        self._stop = threading.Event()

    def run(
        self, files: Sequence[SourceFile], present: Mapping[str, tuple[partial.Span, ...]]
    ) -> dict[str, SealedFile]:
        """Fetch files; the first failure stops all.

        Args:
            files: which.
            present: path → runs of bytes that the file in staging has already.

        Returns:
            Path → what is to be sealed.

        Raises:
            SourceError: the source failed.
            IntegrityError: bytes are not what the source says.
            VolumeError: the volume failed.
        """
        largest = sorted(files, key=lambda file: -file.size)
        self._waiting.extend((file, present.get(file.path, ())) for file in largest)
        count = max(1, min(self._connections, sum(len(_parts([(0, f.size)])) or 1 for f in files)))
        threads = [
            threading.Thread(target=self._work, name=f"fetch {n}", daemon=True)
            for n in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(_TURN)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(_END / count)
            # A number that is closed may be another file's next: not while a thread writes there.
            if not any(thread.is_alive() for thread in threads):
                for output in self._outputs:
                    output.close()
        if self._failure is not None:
            raise self._failure
        return self._done

    def _work(self) -> None:
        # Its own pages: O_DIRECT wants memory that starts at one.
        buffer = memoryview(mmap.mmap(-1, BUFFER))
        try:
            fetch: _Fetch | None = None
            while not self._stop.is_set():
                fetch, span = self._next(fetch)
                if fetch is None:
                    return
                with using(_PLACE):
                    self._part(fetch, span, buffer)
        except _StoppedError:
            pass
        except BaseException as exc:  # noqa: BLE001 - it is raised where it is waited for
            with self._mutex:
                self._failure = self._failure or exc
            self._stop.set()

    def _next(self, last: _Fetch | None) -> tuple[_Fetch | None, partial.Span | None]:
        """Choose what a connection does next: its own file, else a new one, else help."""
        with self._mutex:
            if last is not None and last.todo:
                return last, last.todo.popleft()
            while not self._waiting:
                most = max(self._open, key=lambda fetch: len(fetch.todo), default=None)
                if most is not None and most.todo:
                    return most, most.todo.popleft()
                if not self._opening or self._stop.is_set():
                    return None, None
                self._mutex.wait(_TURN)  # another is asking about a file: it may need help
            file, present = self._waiting.popleft()
            self._opening += 1
        fetch = None
        try:
            if present or file.size > PART:
                file = self._source.describe(self._model, file)
            with using(_PLACE):
                fetch = _Fetch(file, partial.Partial(self._staging, file, self._writing), present)
        finally:
            with self._mutex:
                self._opening -= 1
                self._mutex.notify_all()
                if fetch is not None:
                    self._outputs.append(fetch.output)
                    self._open.append(fetch)
                    span = fetch.todo.popleft() if fetch.todo else None
        return fetch, span

    def _part(self, fetch: _Fetch, span: partial.Span | None, buffer: memoryview) -> None:
        """Fetch one part, then hash what can be hashed, and finish the file if it is the last."""
        if span is not None:
            self._receive(fetch, span, buffer)
        self._catch_up(fetch, buffer)
        with self._mutex:
            fetch.left -= span is not None
            whole = not fetch.left and not fetch.busy and fetch in self._open
            whole = whole and fetch.hashing.seen == fetch.file.size
            if whole:
                self._open.remove(fetch)
        if whole:
            self._finish(fetch)

    def _receive(self, fetch: _Fetch, span: partial.Span, buffer: memoryview) -> None:
        start, end = span
        with self._mutex:
            in_order = not fetch.busy and fetch.hashing.seen == start
            fetch.busy = fetch.busy or in_order
        reader = self._source.open(self._model, fetch.file, start, end)
        try:
            fetch.digests = dict(reader.digests) | fetch.digests  # what was known before wins
            if in_order and start == 0 and reader.digests:
                fetch.hashing = Hashing(quickest(fetch.digests), fetch.file.size)
            at = start
            while at < end:
                data = self._read(reader, buffer[: end - at], fetch.file.path)
                fetch.output.write(data, at)
                if in_order:
                    fetch.hashing.update(data)
                at += len(data)
        finally:
            reader.close()
        if end - start < fetch.file.size:  # else it has its name in a moment
            fetch.output.written(span)
        with self._mutex:
            fetch.there.append(span)
            fetch.busy = fetch.busy and not in_order

    def _read(self, reader: Reader, buffer: memoryview, path: str) -> memoryview:
        """Read until the buffer is full; a source that retries ends only where it fails."""
        filled = 0
        while filled < len(buffer):
            count = reader.readinto(buffer[filled:])
            if not count:
                raise AssertionError("a source's range ended before its end")
            filled += count
            if self._stop.is_set():
                raise _StoppedError
            self._moved(path, count)
        return buffer

    def _catch_up(self, fetch: _Fetch, buffer: memoryview) -> None:
        """Hash what arrived before its turn, from the page cache."""
        while True:
            with self._mutex:
                at = fetch.hashing.seen
                end = next((b for a, b in partial.merge(fetch.there) if a <= at < b), at)
                if fetch.busy or end == at:
                    return
                fetch.busy = True
            while at < end:
                count = os.preadv(fetch.output.descriptor, [buffer[: end - at]], at)
                if not count:
                    raise IntegrityError(
                        f"got {fetch.file.path} shortened while it was fetched, expected "
                        f"{fetch.file.size} bytes",
                        reason="size-mismatch",
                        hint="something else writes on the volume; run again",
                    )
                fetch.hashing.update(buffer[:count])
                at += count
                if self._stop.is_set():
                    raise _StoppedError
            with self._mutex:
                fetch.busy = False

    def _finish(self, fetch: _Fetch) -> None:
        file = fetch.file
        try:
            fetch.hashing.check(file.path, fetch.digests)
        except IntegrityError:
            fetch.output.start_over()
            if not fetch.taken_over:
                raise
            fetch.start_over()
            with self._mutex:
                self._open.append(fetch)
            return
        fetch.output.finish(os.path.join(self._staging, FILES, file.path))
        sealed = SealedFile(f"{FILES}/{file.path}", file.size, fetch.hashing.sha256())
        with self._mutex:
            self._done[file.path] = sealed
