"""The one error tree: what went wrong, what to do about it, and the exit code that says so.

Every failure a user can meet is a `WarmerError`. Its message says what was got and what was
expected, its `hint` says what to do, its `reason` is a stable slug for programs, and its class
fixes the exit code (docs/cli.md). Third-party exceptions are translated where they enter and
chained with `from`. Anything else that reaches the top is a bug (exit 70).
"""

from __future__ import annotations

import errno
import os
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

EXIT_OK: Final = 0
EXIT_NOT_WARM: Final = 1
EXIT_BUG: Final = 70
EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143


class WarmerError(Exception):
    """A failure the user can act on.

    Attributes:
        message: one line, "got X, expected Y" where that applies; never holds a secret.
        hint: what to do next, or an empty string.
        reason: a stable slug for programs, such as ``not-found``.
        exit_code: the process exit status this class of failure ends with.
    """

    exit_code: ClassVar[int] = EXIT_BUG

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.hint = hint


class NotWarmError(WarmerError):
    """A piece is missing, nothing here may fill it, and its policy is ``fail``."""

    exit_code = 1


class UsageError(WarmerError):
    """The command line, the environment or the configuration file is wrong."""

    exit_code = 2


class BusyError(WarmerError):
    """Another owner is filling, or waiting for it ran past ``--wait``."""

    exit_code = 3


class SourceError(WarmerError):
    """The place the bytes come from failed: not found, denied, rate-limited, unreachable."""

    exit_code = 4


class LockError(WarmerError):
    """The service that keeps the lock failed: denied, not found, unreachable, not able to."""

    exit_code = 4


class IntegrityError(WarmerError):
    """Bytes are not what the source or the seal says they are."""

    exit_code = 5


class VolumeError(WarmerError):
    """The volume or the warm dir failed: no space, read-only, permission, I/O error."""

    exit_code = 6


class EngineError(WarmerError):
    """The engine run that builds kernels failed."""

    exit_code = 7


class TerminatedError(BaseException):
    """SIGTERM or SIGINT arrived: unwind, clean up, exit with 128 + the signal.

    A `BaseException`, so that no handler meant for failures swallows a request to stop.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


# errno → (reason, hint). What is not here is reported as an I/O error with its own text.
_VOLUME_ERRNOS: Final = {
    errno.ENOSPC: ("no-space", "free space on it, or give it more"),
    errno.EDQUOT: ("quota", "raise the quota; on EFS a lock call can also meet the lock limit"),
    errno.EROFS: ("read-only", "mount it writable where `warmer prefill` runs"),
    errno.EACCES: ("permission", "check the owner and mode, and the pod's fsGroup"),
    errno.EPERM: ("permission", "check the owner and mode, and the pod's fsGroup"),
    errno.ENOTDIR: ("not-a-directory", "point at a directory"),
    errno.EEXIST: ("not-a-directory", "point at a directory"),
    errno.ENOENT: ("missing", "mount it, or create it first"),
    errno.EIO: ("io", "look at the storage server; the kernel log of the node says more"),
    errno.ESTALE: ("stale-handle", "the server replaced what was mounted: remount the volume"),
}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say which of the known words is near, as a question; empty where none is."""
    found = near(word, known)
    return f"did you mean {found[0]}?" if found else ""


def near(word: str, known: Iterable[str], *, alike: float = 0.6) -> list[str]:
    """Find the known words that one may be mistyped for, the nearest first; `alike` is from 0 to 1."""
    import difflib  # noqa: PLC0415 - only where something may be mistyped

    return difflib.get_close_matches(word.lower().replace("_", "-"), [*known], cutoff=alike)


def volume_error(exc: OSError, place: str) -> VolumeError:
    """Translate an operating-system error met while `place` (volume, warm dir) was used."""
    reason, hint = _VOLUME_ERRNOS.get(exc.errno or 0, ("io", ""))
    where = f" at {exc.filename}" if exc.filename else ""
    what = os.strerror(exc.errno) if exc.errno else str(exc)
    return VolumeError(f"{place} failed: {what}{where}", reason=reason, hint=hint)


@contextmanager
def using(place: str) -> Iterator[None]:
    """Turn any `OSError` inside the block into a `VolumeError` that names `place`."""
    try:
        yield
    except OSError as exc:
        raise volume_error(exc, place) from exc


def as_record(exc: BaseException) -> dict[str, str]:
    """Say a failure so that `from_record` understands it in another process."""
    if isinstance(exc, WarmerError):
        kind = next(c for c in type(exc).__mro__ if c.__module__ == __name__)
        more = {"message": exc.message, "reason": exc.reason, "hint": exc.hint}
        return {"kind": kind.__name__, **more}
    if isinstance(exc, OSError) and exc.errno:
        return {"errno": str(exc.errno), "filename": str(exc.filename or "")}
    return {"bug": "".join(traceback.format_exception(exc))}


def from_record(said: Mapping[str, str]) -> Exception:
    """Make the failure that another process met; a bug there is one here."""
    if "bug" in said:
        return RuntimeError(f"a worker failed:\n{said['bug']}")
    if "errno" in said:
        number = int(said["errno"])
        return OSError(number, os.strerror(number), said["filename"] or None)
    kind: type[WarmerError] = globals()[said["kind"]]
    return kind(said["message"], reason=said["reason"], hint=said["hint"])
