"""Carry steps out: remove what is hidden, what is left over, and stagings under their key's lock.

Killed anywhere, a generation is in one of two places, whole, or in the trash under a name that says
its removal has begun. Its number stays taken throughout: by its name, then by a file in ``taken/``
that is flushed before the first byte goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Final

from warmer import regular
from warmer.collect import census
from warmer.collect.census import GOING
from warmer.errors import using
from warmer.fill import stagings
from warmer.model import Key

if TYPE_CHECKING:
    from warmer.collect.decide import Step
    from warmer.collect.need import Aside
    from warmer.collect.records import Records, Taken
    from warmer.fill.locks import Grant
    from warmer.layout import Volume
    from warmer.usage import Piece

_PLACE: Final = "the volume"
_MOST_COUNTED: Final = 1 << 62
"""Bytes removed in all that are believed; metrics cannot tell of numbers without end."""


def empty(volume: Volume, aside: Aside, records: Records, taken: Taken) -> str:
    """Remove a hidden or quarantined generation for good, and keep its number taken.

    Args:
        volume: where.
        aside: what.
        records: who uses what; nobody can come to see what is hidden, so they may be a little old.
        taken: the numbers that were ever given.

    Returns:
        Why it stayed; empty where it is gone.

    Raises:
        VolumeError: the volume failed.
    """
    piece = aside.piece
    if piece is None:
        return "not warmer's"
    if aside.sort == "trash" and not aside.going and (why := records.why(piece)):
        return why
    path = aside.path
    with using(_PLACE):
        _keep_taken(volume, piece, taken)
        if not path.endswith(GOING):
            # From here on nobody puts it back; a gc beside this one finds it gone.
            try:
                os.rename(path, path + GOING)
            except FileNotFoundError:
                return "gone already"
            path += GOING
            _flush(os.path.dirname(path))
        erase(path)
    return ""


def sweep(step: Step, grant: Grant) -> str:
    """Remove a staging under its key's lock: its owner is gone, as nothing was written for long.

    Returns:
        Why it stayed; empty where it is gone.

    Raises:
        VolumeError: the volume failed.
    """
    aside, piece = step.aside, step.piece
    if aside is None or piece is None:
        return "not warmer's"
    with using(_PLACE):
        _, newest = census.weigh(aside.path)
        if newest > aside.at:
            return "written to meanwhile"
        if not grant.still_mine():
            return "its lock was lost"
    stagings.discard(stagings.Staging(aside.path, Key.known(*piece.key), ""))
    return "could not be removed" if os.path.lexists(aside.path) else ""


def erase(path: str) -> None:
    """Remove a file or a tree; what others remove meanwhile is no failure.

    Raises:
        VolumeError: it cannot be removed.
    """
    with using(_PLACE):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, onerror=_unless_gone)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _unless_gone(_call: object, _path: str, info: tuple[object, BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def _keep_taken(volume: Volume, piece: Piece, taken: Taken) -> None:
    """Leave a file that says its number is taken, where no higher one of its key says it too."""
    if piece.number < taken.highest(piece):
        return
    os.makedirs(volume.taken, exist_ok=True)
    name = f"{piece.kind}-{piece.digest}-{piece.number}"
    descriptor = os.open(
        os.path.join(volume.taken, name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666
    )
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _flush(volume.taken)
    _flush(volume.top)
    for other in taken.names(piece):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(volume.taken, other))


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def counted(volume: Volume) -> int:
    """Read how many bytes every gc has removed; 0 where nobody says so in a number of bytes.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        found = json.loads(regular.read(volume.collected))["removed_bytes"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return found if type(found) is int and 0 <= found < _MOST_COUNTED else 0


def count(volume: Volume, size: int) -> None:
    """Add to how many bytes were removed in all; the caller is the only gc. A number, no more."""
    if not size:
        return
    fresh = f"{volume.collected}.{secrets.token_hex(4)}"
    try:
        before = counted(volume)
        with open(fresh, "x", encoding="utf-8") as f:
            f.write(json.dumps({"schema_version": 1, "removed_bytes": before + size}) + "\n")
        os.replace(fresh, volume.collected)
    except (OSError, regular.OddFileError):
        with contextlib.suppress(OSError):
            os.unlink(fresh)
