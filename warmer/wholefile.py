"""One small file of the user's, put where he said: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import Final

from warmer import regular

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class ChangedError(Exception):
    """The file is no longer what it was when it was read; it was left as it is."""


def read(path: str) -> bytes:
    """Read a file; a link leads to what it names.

    Raises:
        OddFileError: it is no regular file, or longer than such files are.
        OSError: it cannot be read.
    """
    return regular.read(os.path.realpath(path))


def put(path: str, body: bytes, *, before: bytes | None = None) -> None:
    """Write a file, or replace one: nobody ever sees half of it.

    The mode and, where that is allowed, the owner of a file that is there stay. A link stays one, and
    what it leads to is replaced. A pipe or a device is written to as it is.

    Args:
        path: which.
        body: what it holds then.
        before: what it held when it was read; None where that does not matter.

    Raises:
        ChangedError: it holds something else by now.
        OddFileError: it is no regular file by now, and `before` was given.
        OSError: it cannot be written.
    """
    old = _old(path)
    if before is None and old is not None and not stat.S_ISREG(old.st_mode):
        # By the name given: where /dev/stdout is a pipe, the link leads to a name of none.
        with open(path, "wb", buffering=0) as device:
            left = memoryview(body)
            while left:
                left = left[device.write(left) :]
        return
    real = os.path.realpath(path)
    fresh = f"{real}.{secrets.token_hex(4)}.new"
    try:
        with open(os.open(fresh, _FLAGS, 0o600 if old else 0o666), "wb") as file:
            file.write(body)
            if old is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            file.flush()
            os.fsync(file.fileno())
        _insist_unchanged(path, before)
        os.rename(fresh, real)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    directory = os.open(os.path.dirname(real), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _insist_unchanged(path: str, before: bytes | None) -> None:
    if before is not None and read(path) != before:
        raise ChangedError(path)


def _old(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
