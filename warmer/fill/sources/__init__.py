"""Sources: where weights come from. One protocol, one place per file, unaware of each other.

A source resolves a revision, lists files with what their bytes must hash to, and copies one file
at a time. It neither retries, nor locks, nor knows the volume: those wrap it from outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from warmer.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmer.model import ModelRef


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a model.

    Attributes:
        path: relative, with ``/``.
        size: bytes.
        sha256: what its bytes must hash to, where the source says so (LFS files on the hub).
        git_sha1: git's blob hash, where the source says so (other files on the hub).
    """

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


class TransientSourceError(SourceError):
    """A failure worth trying again: unreachable, reset, throttled, a 5xx.

    Attributes:
        retry_after: seconds the source asked to wait, if it did.
    """

    def __init__(
        self, message: str, *, reason: str, hint: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message, reason=reason, hint=hint)
        self.retry_after = retry_after


class Source(Protocol):
    """A model at one place."""

    def resolve(self) -> ModelRef:
        """Ask what the revision means now; one round trip, none for a pinned revision.

        Raises:
            SourceError: not found, denied, unreachable.
        """

    def files(self, model: ModelRef) -> tuple[SourceFile, ...]:
        """List the files of a resolved revision, sorted by path.

        Raises:
            SourceError: not found, denied, unreachable.
        """

    def fetch(
        self, model: ModelRef, file: SourceFile, target: str, progress: Callable[[int], None]
    ) -> None:
        """Copy one file to `target`, a path that does not exist, in a directory of its own.

        Args:
            model: the resolved revision.
            file: which file.
            target: absolute path; its directory may be used for partial bytes.
            progress: called with the number of bytes that arrived since the last call.

        Raises:
            SourceError: not found, denied, unreachable, cut short.
        """
