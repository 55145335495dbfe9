"""One small file replaced by another, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat

from warmer import regular
from warmer.errors import UsageError

_HINT = "run it where the file can be written, or put the sizes there by hand"


def read(path: str) -> bytes:
    """Read a configuration file; a link leads to what it names.

    Raises:
        UsageError: it cannot be read, or is no file of that kind.
    """
    try:
        return regular.read(os.path.realpath(path))
    except (OSError, regular.OddFileError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise UsageError(
            f"got --config {path}: {why}, expected a YAML file",
            reason="bad-config",
            hint="name the file that `warmer prefill --config` reads",
        ) from exc


def replace(path: str, *, before: bytes, after: bytes) -> None:
    """Replace a file's content; its mode and, where that is allowed, its owner stay.

    Args:
        path: which; where it is a link, what it leads to is replaced, and the link stays.
        before: what it held when it was read.
        after: what it holds then.

    Raises:
        UsageError: it was changed meanwhile, or cannot be written.
    """
    real = os.path.realpath(path)
    beside = f"{real}.{secrets.token_hex(4)}.tmp"
    try:
        info = os.stat(real)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(beside, flags, 0o600), "wb") as f:
                f.write(after)
                with contextlib.suppress(PermissionError):
                    os.fchown(f.fileno(), info.st_uid, info.st_gid)
                os.fchmod(f.fileno(), stat.S_IMODE(info.st_mode))
                f.flush()
                os.fsync(f.fileno())
            _insist_unchanged(path, before)
            os.rename(beside, real)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        directory = os.open(os.path.dirname(real), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as exc:
        raise UsageError(
            f"got {path}, which cannot be written ({exc.strerror}), expected a writable file",
            reason="bad-config",
            hint=_HINT,
        ) from exc


def _insist_unchanged(path: str, before: bytes) -> None:
    if read(path) != before:
        raise UsageError(
            f"got {path} changed while it was edited, expected it to stay still",
            reason="config-changed",
            hint="run again",
        )
