"""``file:///dir``: a model on another mount. Its revision is the digest of its listing.

Paths, sizes and modification times stand for the content, so that a warm start reads no weights
to learn that nothing changed; a file that was changed under the same time goes unnoticed, as it
does for make and rsync.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import TYPE_CHECKING

from warmer.errors import SourceError
from warmer.fill.sources import SourceFile, TransientSourceError
from warmer.model import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from warmer.model import ModelRef


class Directory:
    """A model in a directory.

    Args:
        model: with the directory as its name.
    """

    def __init__(self, model: ModelRef) -> None:
        self._model = model

    def resolve(self) -> ModelRef:
        """Digest the listing."""
        listing = [(path, info.st_size, info.st_mtime_ns) for path, info in self._listing()]
        digest = hashlib.sha256(canonical(listing).encode()).hexdigest()
        return dataclasses.replace(self._model, revision=digest)

    def files(self, model: ModelRef) -> tuple[SourceFile, ...]:
        """List the files; their hashes are not known before they are read."""
        if self.resolve().revision != model.revision:
            raise SourceError(
                f"got {self._model} changed while it was read, expected it to stay still",
                reason="source-changed",
                hint="run again when nothing writes there",
            )
        return tuple(SourceFile(path, info.st_size) for path, info in self._listing())

    def describe(self, _model: ModelRef, file: SourceFile) -> SourceFile:
        """Nobody vouches for a directory's bytes."""
        return file

    def open(self, model: ModelRef, file: SourceFile, start: int, end: int) -> _Reader:
        """Open a range of a file."""
        try:
            descriptor = os.open(os.path.join(model.name, file.path), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise self._error(exc) from exc
        return _Reader(descriptor, start, end, self._error)

    def _listing(self) -> list[tuple[str, os.stat_result]]:
        top = self._model.name
        found: list[tuple[str, os.stat_result]] = []
        try:
            if not os.path.isdir(top):
                raise SourceError(
                    f"got no directory at {top}, expected a model",
                    reason="not-found",
                    hint="mount it where warmer runs, or check the file:// URI",
                )
            for directory, names, files in os.walk(top, onerror=_raise):
                names[:] = [name for name in names if not name.startswith(".")]
                for name in names:
                    _refuse_link(os.path.join(directory, name))
                for name in files:
                    path = os.path.join(directory, name)
                    found.append((os.path.relpath(path, top), os.stat(path)))
        except OSError as exc:
            raise self._error(exc) from exc
        if not found:
            raise SourceError(
                f"got no file in {top}, expected a model",
                reason="not-found",
                hint="name the directory that holds its config.json and its weights",
            )
        return sorted(found)

    def _error(self, exc: OSError) -> SourceError:
        message = f"{self._model} failed: {exc.strerror or exc} at {exc.filename}"
        if isinstance(exc, PermissionError):
            return SourceError(message, reason="denied", hint="check its owner and mode")
        if isinstance(exc, FileNotFoundError):
            return SourceError(message, reason="not-found")
        return TransientSourceError(message, reason="io")


class _Reader:
    """A range of an open file."""

    def __init__(
        self, descriptor: int, start: int, end: int, error: Callable[[OSError], SourceError]
    ) -> None:
        self.digests: Mapping[str, str] = {}
        self._descriptor = descriptor
        self._at = start
        self._end = end
        self._error = error

    def readinto(self, buffer: memoryview) -> int:
        """Put the next bytes into the buffer."""
        try:
            count = os.preadv(self._descriptor, [buffer[: self._end - self._at]], self._at)
        except OSError as exc:
            raise self._error(exc) from exc
        self._at += count
        return count

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _refuse_link(path: str) -> None:
    """A link to a file is read as the file; a linked directory would be left out in silence."""
    if os.path.islink(path):
        raise SourceError(
            f"got a link to a directory at {path}, expected files and directories",
            reason="linked-directory",
            hint="copy what it leads to, or name the directory it leads to",
        )


def _raise(exc: OSError) -> None:
    raise exc
