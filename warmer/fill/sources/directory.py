"""``file:///dir``: a model on another mount. Its revision is the digest of its listing.

Paths, sizes and modification times stand for the content, so that a warm start reads no weights
to learn that nothing changed; a file that was changed under the same time goes unnoticed, as it
does for make and rsync.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import TYPE_CHECKING, Final

from warmer.errors import SourceError
from warmer.fill.sources import SourceFile, TransientSourceError
from warmer.model import canonical

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmer.model import ModelRef

_CHUNK: Final = 1 << 20


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

    def fetch(
        self, model: ModelRef, file: SourceFile, target: str, progress: Callable[[int], None]
    ) -> None:
        """Copy one file."""
        try:
            source = open(os.path.join(model.name, file.path), "rb")  # noqa: SIM115 - used below
        except OSError as exc:
            raise self._error(exc) from exc
        with source, open(target, "xb") as out:
            while True:
                try:
                    chunk = source.read(_CHUNK)
                except OSError as exc:
                    raise self._error(exc) from exc
                if not chunk:
                    return
                out.write(chunk)
                progress(len(chunk))

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
            raise SourceError(f"got no file in {top}, expected a model", reason="not-found")
        return sorted(found)

    def _error(self, exc: OSError) -> SourceError:
        message = f"{self._model} failed: {exc.strerror or exc} at {exc.filename}"
        if isinstance(exc, PermissionError):
            return SourceError(message, reason="denied", hint="check its owner and mode")
        if isinstance(exc, FileNotFoundError):
            return SourceError(message, reason="not-found")
        return TransientSourceError(message, reason="io")


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
