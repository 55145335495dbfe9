"""Sources: where weights come from. One protocol, one place per file, unaware of each other.

A source resolves a revision, lists files with what their bytes must hash to, and opens ranges of
their bytes. It neither retries, nor locks, nor writes, nor knows the volume: those wrap it from
outside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from warmer.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.model import ModelRef


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a model.

    Attributes:
        path: relative, with ``/``.
        size: bytes.
        digests: what its bytes must hash to, as far as the source says so: names of
            `warmer.fill.digests` → lower-case hex digits.
        version: what changes when the source's bytes do (an ETag), where it matters.
    """

    path: str
    size: int
    digests: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


class TransientSourceError(SourceError):
    """A failure worth trying again: unreachable, reset, throttled, a 5xx.

    Attributes:
        retry_after: seconds the source asked to wait, if it did.
        throttled: whether the source asks everybody to slow down.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        hint: str = "",
        retry_after: float | None = None,
        throttled: bool = False,
    ) -> None:
        super().__init__(message, reason=reason, hint=hint)
        self.retry_after = retry_after
        self.throttled = throttled


class Reader(Protocol):
    """The bytes of one range, in order."""

    digests: Mapping[str, str]
    """What this answer says of the whole file, beyond the listing."""

    def readinto(self, buffer: memoryview) -> int:
        """Put the next bytes into the buffer; return how many, 0 when there are no more.

        Raises:
            SourceError: the connection broke, or worse.
        """

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""


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

    def describe(self, model: ModelRef, file: SourceFile) -> SourceFile:
        """Add the digests that only a question about this one file tells.

        Raises:
            SourceError: not found, denied, unreachable, changed since it was listed.
        """

    def open(self, model: ModelRef, file: SourceFile, start: int, end: int) -> Reader:
        """Open the bytes from `start` up to `end` of a file.

        Raises:
            SourceError: not found, denied, unreachable, changed since it was listed.
        """
