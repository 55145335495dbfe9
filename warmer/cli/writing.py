"""Files that a verb leaves where the user said: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat

from warmer.errors import UsageError, using


def require_place(path: str, flag: str) -> None:
    """Insist on the directory of a file that will be written later.

    Raises:
        UsageError: it is not there, or `path` is itself a directory.
    """
    directory = os.path.dirname(path) or "."
    if not path or os.path.isdir(path) or not os.path.isdir(directory):
        raise UsageError(
            f"got {flag} {path or '(empty)'}, expected a file in a directory that exists",
            reason="no-such-directory",
            hint="make the directory first",
        )


def write(path: str, text: str) -> None:
    """Put a text where nobody ever sees half of it; a pipe or a device is written to as it is.

    Raises:
        VolumeError: it cannot be written.
    """
    with using(path):
        if _is_special(path):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            return
        # A link stays one; and a pod's processes have the same few pids, so that those name no file.
        fresh = f"{os.path.realpath(path)}.{secrets.token_hex(4)}.new"
        try:
            with open(fresh, "x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, os.path.realpath(path))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise


def _is_special(path: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
