"""Records of use: what each warm dir was handed, so that `warmer gc` leaves it alone.

A record is written before the pieces are looked at, and `warmer gc` reads the records again after
it has hidden a piece: whichever comes second sees the other. Until the handoff, the record names
keys alone, which stand for every generation of them; then, the generations handed off.

A record is as old as its file, by the clock of the volume's server; no other clock is asked. The
server that starts from the handoff keeps ``<name>.live`` locked, so that a record of a running
pod counts however old it is, where locks on the mount exclude other nodes.

A pod whose volume is full or read-only starts all the same, unrecorded; the log says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from typing import TYPE_CHECKING, Final

import structlog

from warmer import regular
from warmer.errors import using
from warmer.observe import inventory, numbers
from warmer.usage import ANY, Piece, Use, covers, encode, parse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warmer.layout import Volume, WarmDir

_log = structlog.get_logger(__name__)
_PLACE: Final = "the volume"
_NAME: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_RECORD: Final = re.compile(r"([0-9a-f]{16})\.(?:json|live)", re.ASCII)
_SAFELY: Final = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
"""Who waits at a pipe, or follows a link, is led astray by whoever put it there."""
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def record(volume: Volume, warm: WarmDir, pieces: Iterable[Piece], *, owner: str) -> None:
    """Record that a warm dir uses pieces; what cannot be written is logged, not raised.

    A record that says so already is only made young again. What a server that runs from the warm
    dir was handed by an earlier prefill stays recorded.

    Args:
        volume: where to.
        warm: whose use it is.
        pieces: what is used.
        owner: names the prefill to people.
    """
    wanted = frozenset(pieces)
    known = False
    try:
        name = _name(warm)
        before = _named(volume, name)
        known = all(covers(before, piece) for piece in wanted)
        on_its_way = all(piece.number == ANY for piece in wanted)
        if known and (before == wanted or on_its_way):
            with contextlib.suppress(FileNotFoundError):  # removed since: it is written anew
                os.utime(volume.use(name))
                return
        begin(volume)
        _touch(volume.live(name))
        with contextlib.ExitStack() as stack:
            if before and _held(volume.live(name), stack):
                wanted |= before
        _replace(volume.use(name), encode(wanted, warm=warm.root, owner=owner))
    except OSError as exc:
        if known and exc.errno == errno.EROFS:  # it ages from when the volume was writable
            return
        _log.warning(
            "cannot record what is used here: `warmer gc` may remove it",
            failure=f"{exc.strerror} at {exc.filename or volume.uses}",
            hint="mount the volume writable where `warmer prefill` runs, or let gc --keep longer",
        )


def begin(volume: Volume) -> None:
    """Begin to record uses on a volume; `Volume.since` is as old as the first call.

    What gc needs is made here too: on a full volume it could not be.

    Raises:
        OSError: the volume failed.
    """
    for place in (volume.uses, volume.trash, volume.taken, volume.crashes):
        os.makedirs(place, exist_ok=True)
    _touch(volume.since)


def name_of(warm: WarmDir) -> str | None:
    """Name a warm dir's record; None where it has none.

    A name holds for one boot of one node: the copy of a warm dir that another node got with its
    disk is another user.
    """
    try:
        with open(warm.use, encoding="ascii") as f:
            name, _, boot = f.read(256).strip().partition(" ")
    except (OSError, ValueError):
        return None
    return name if _NAME.fullmatch(name) and boot == inventory.boot() else None


def read_all(volume: Volume, *, asked_before: float = float("inf")) -> list[Use]:
    """Read every record, as the server has them now.

    Args:
        volume: where.
        asked_before: younger records than this time are not asked whether a server locks them.

    Raises:
        VolumeError: the records cannot be listed.
    """
    with using(_PLACE):
        try:
            found = map(_RECORD.fullmatch, numbers.listing(volume, volume.uses))
        except FileNotFoundError:
            return []
        names = sorted({match[1] for match in found if match})
        uses = (_read(volume, name, asked_before) for name in names)
        return [use for use in uses if use is not None]


def renew(volume: Volume, use: Use) -> None:
    """Make the record of a running server young again: its pod may be between two starts later.

    Raises:
        VolumeError: the volume failed.
    """
    with using(_PLACE), contextlib.suppress(FileNotFoundError):
        os.utime(volume.use(use.name))


def forget(volume: Volume, use: Use) -> bool:
    """Remove a record; False where a server holds it, or a prefill made it young meanwhile.

    Raises:
        VolumeError: the volume failed.
    """
    path, live = volume.use(use.name), volume.live(use.name)
    aside = f"{path}.{secrets.token_hex(4)}"
    with using(_PLACE), contextlib.ExitStack() as stack:
        if _held(live, stack):
            return False
        with contextlib.suppress(FileNotFoundError):  # a gc was killed here, or a prefill
            os.rename(path, aside)
            young = os.stat(aside).st_mtime > use.at
            if young:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, path)
            os.unlink(aside)
            if young:
                return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(live)
        if os.path.lexists(path):  # a prefill wrote it anew, and its server needs the lock
            _touch(live)
            return False
    return True


def _read(volume: Volume, name: str, asked_before: float) -> Use | None:
    path = volume.use(name)
    live = False
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        if os.lstat(path).st_mtime < asked_before:
            live = _held(volume.live(name), stack)
    try:
        at = os.lstat(path).st_mtime  # of what is no record
        data, at = regular.read_at(path)
        pieces, owner = parse(data)
    except FileNotFoundError:
        return _unnamed(volume, name)
    except OSError as exc:
        with contextlib.suppress(FileNotFoundError):
            return Use(name, os.lstat(path).st_mtime, live, None, why=exc.strerror or str(exc))
        return None
    except ValueError as exc:
        return Use(name, at, live, None, why=str(exc))
    return Use(name, at, live, pieces, owner)


def _unnamed(volume: Volume, name: str) -> Use | None:
    """A lock without its record: a server that holds it may use anything."""
    try:
        at = os.lstat(volume.live(name)).st_mtime
    except FileNotFoundError:
        return None
    with contextlib.ExitStack() as stack:
        if _held(volume.live(name), stack):
            return Use(name, at, True, None, why="its server runs, and its record is gone")  # noqa: FBT003 - a field
    return Use(name, at, False, frozenset())  # noqa: FBT003 - as above


def _held(path: str, stack: contextlib.ExitStack) -> bool:
    """Whether a server holds the lock; if not, it is held here until the stack is closed.

    What cannot be asked counts as held, but where there are no locks at all.
    """
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | _SAFELY)
        except OSError as exc:
            if exc.errno not in (errno.EROFS, errno.EACCES):
                raise
            descriptor = os.open(path, os.O_RDONLY | _SAFELY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        return exc.errno not in _NO_LOCKS
    return False


def _named(volume: Volume, name: str) -> frozenset[Piece]:
    try:
        return parse(regular.read(volume.use(name)))[0]
    except (OSError, ValueError):
        return frozenset()


def _name(warm: WarmDir) -> str:
    """Name a warm dir, for as long as its node is up.

    Raises:
        OSError: the warm dir failed.
    """
    if (known := name_of(warm)) is not None:
        return known
    fresh = secrets.token_hex(8)
    _replace(warm.use, f"{fresh} {inventory.boot()}\n".encode())
    return fresh


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | _SAFELY, 0o666))


def _replace(path: str, data: bytes) -> None:
    fresh = f"{path}.{secrets.token_hex(4)}"
    try:
        with open(fresh, "xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(fresh, path)
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
