"""The one door: staging becomes a published generation here, and nowhere else.

Order, and why each step is where it is:

1. a private staging directory per claim: a zombie of another claim cannot write into it;
2. every file is complete, then flushed to the volume;
3. the seal is written and flushed: it exists only when all it names does;
4. every directory is flushed, leaves first: names are durable too;
5. the grant is asked one last time, with a round trip;
6. ``rename`` onto a name that must not exist. A directory never replaces one that is not empty
   (ENOTEMPTY on ext4, XFS and every NFS): of two claims, one wins and the other learns it;
7. the parent is flushed.

What is published leaves by the same door: moved aside whole, to `quarantine/` or, where it can be
put back, to `trash/`. Its number stays taken.

Killed anywhere before 6, only staging is left; after 6, the generation is whole. A published
tree is never changed: readers map its files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from warmer import __version__, seal
from warmer.errors import BusyError, IntegrityError, VolumeError, using
from warmer.fill import locks
from warmer.layout import KEY, SEAL
from warmer.observe import inventory, numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from warmer.fill.locks import Grant
    from warmer.fill.stagings import Staging
    from warmer.layout import Volume
    from warmer.model import Key
    from warmer.trust import Trust

_PLACE: Final = "the volume"
_TAKEN: Final = (errno.ENOTEMPTY, errno.EEXIST)
_MOVED: Final = (errno.ENOENT, errno.ESTALE)


class LostRaceError(BusyError):
    """Somebody else published this generation first; theirs stands, seen or not yet."""

    def __init__(self, key: Key, generation: int) -> None:
        super().__init__(
            f"got generation {generation} of {key.kind} {key.short} published by another owner, "
            "expected it free",
            reason="lost-race",
            hint="theirs is complete; run again to use it",
        )
        self.key = key
        self.generation = generation


def publish(
    volume: Volume,
    staging: Staging,
    *,
    files: Iterable[seal.SealedFile],
    grant: Grant,
    after: int,
    source: str,
    seconds: float,
    trust: Trust,
    needs: Mapping[str, int] | None = None,
    signatures: Mapping[str, str] | None = None,
) -> int:
    """Publish what is staged as the generation after `after`.

    Args:
        volume: where to.
        staging: what; every file already verified by who put it there.
        files: the staged files with the size and sha256 they were verified to have; the key's
            factors are written where they are not among them.
        grant: the lock, asked as the last act.
        after: the highest number taken when the grant was got (`numbers.highest_taken`); who
            published since has won.
        source: where the bytes came from; no credentials.
        seconds: what filling took.
        needs: kind → generation of another piece this one was built beside.
        trust: as whom the seal is signed.
        signatures: others', of exactly these files, its `KEY` among them.

    Returns:
        The generation's number.

    Raises:
        LostGrantError: the lock is no longer ours; nothing was published.
        LostRaceError: the number is taken.
        IntegrityError: a staged file is not as long as it was.
        VolumeError: the volume failed; nothing was published, unless only the last flush did.
    """
    key = staging.key
    with using(_PLACE):
        sealed = {file.path: file for file in files}
        if KEY not in sealed:
            sealed[KEY] = _write_key(staging)
        record = seal.Seal(
            kind=key.kind,
            key=key.digest,
            generation=after + 1,
            nonce=staging.nonce,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            by=f"warmer {__version__}",
            source=source,
            seconds=seconds,
            files=tuple(sorted(sealed.values())),
            needs=dict(needs or {}),
        )
        signed = dict(signatures or {}) | trust.sign(seal.statement(record))
        record = dataclasses.replace(record, signatures=signed)
        data = seal.encode(record)
        if len(data) > seal.LONGEST:
            raise VolumeError(
                f"got {len(record.files)} files for one piece, expected a seal of at most "
                f"{seal.LONGEST} bytes",
                reason="too-many-files",
                hint="leave some out: --exclude",
            )
        for file in record.files:
            _flush(os.path.join(staging.path, file.path), size=file.size)
        _write(os.path.join(staging.path, SEAL), data)
        _flush_directories(staging.path)
        parent = volume.key(key.kind, key.digest)
        _make_directories(volume.root, parent)
        if not grant.still_mine():
            raise locks.lost(f"{key.kind} {key.short}")
        _commit(volume, staging, record.generation)
        _flush(parent)
    return record.generation


def quarantine(volume: Volume, key: Key, generation: int) -> str:
    """Move a generation found corrupt aside, under its key's grant; it is looked at no more.

    Returns:
        Where it is now.

    Raises:
        VolumeError: the volume failed.
    """
    target = os.path.join(volume.quarantine, _aside_name(key, generation))
    _aside(volume, key, generation, target)
    return target


def trash_name(volume: Volume, key: Key, generation: int) -> str:
    """Name a place in the trash, which nobody else names."""
    return os.path.join(volume.trash, _aside_name(key, generation))


def hide(volume: Volume, key: Key, generation: int, place: str) -> None:
    """Move a generation that nothing needs into the trash, under its key's grant.

    Args:
        volume: where.
        key: its piece.
        generation: its number.
        place: where to, from `trash_name`; `put_back` undoes it.

    Raises:
        VolumeError: the volume failed.
    """
    _aside(volume, key, generation, place)


def put_back(volume: Volume, place: str) -> bool:
    """Undo `hide`; False where the number is published again, or the trash has been emptied.

    Args:
        volume: where.
        place: what `hide` was given.

    Raises:
        VolumeError: the volume failed.
    """
    was = numbers.aside(os.path.basename(place))
    if was is None:
        return False
    target = volume.generation(was.kind, was.digest, was.number)
    with using(_PLACE):
        _make_directories(volume.root, os.path.dirname(target))
        try:
            os.rename(place, target)
        except OSError as exc:
            if exc.errno in (*_TAKEN, *_MOVED):
                return False
            raise
        _flush(os.path.dirname(target))
        _flush(volume.trash)
    return True


def _aside(volume: Volume, key: Key, generation: int, target: str) -> None:
    """Move a generation; its directory's time says by the server's clock since when it is there."""
    source, place = volume.generation(key.kind, key.digest, generation), os.path.dirname(target)
    with using(_PLACE):
        _make_directories(volume.root, place)
        _touch(source)
        os.rename(source, target)
        _flush(place)
        _flush(os.path.dirname(source))


def _aside_name(key: Key, generation: int) -> str:
    return f"{key.kind}-{key.digest}-{generation}-{secrets.token_hex(4)}"


def _commit(volume: Volume, staging: Staging, generation: int) -> None:
    """Rename into place; an error may hide a success, which the nonce in the seal settles."""
    key = staging.key
    target = volume.generation(key.kind, key.digest, generation)
    try:
        os.rename(staging.path, target)
    except OSError as exc:
        # This opens the directory anew: what NFS remembers of it may be from before.
        there = numbers.generations(volume, key.kind, key.digest)
        if _published_nonce(target) == staging.nonce:
            return
        if exc.errno in _TAKEN or (exc.errno in _MOVED and generation in there):
            raise LostRaceError(key, generation) from exc
        raise


def _published_nonce(target: str) -> str | None:
    with contextlib.suppress(Exception):  # whatever is wrong with it, it is not our publish
        return inventory.read_seal(target)[0].nonce
    return None


def _write_key(staging: Staging) -> seal.SealedFile:
    key = staging.key
    record = {"kind": key.kind, "digest": key.digest, "factors": dict(key.factors)}
    data = json.dumps(record, indent=1, sort_keys=True).encode() + b"\n"
    _write(os.path.join(staging.path, KEY), data)
    return seal.SealedFile(KEY, len(data), hashlib.sha256(data).hexdigest())


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _flush(path: str, size: int | None = None) -> None:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        found = os.fstat(descriptor).st_size
        if size is not None and found != size:
            raise IntegrityError(
                f"got {found} bytes staged at {path}, expected {size}",
                reason="size-mismatch",
                hint="something else writes on the volume; run again",
            )
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _touch(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.utime(descriptor)
    finally:
        os.close(descriptor)


def _flush_directories(top: str) -> None:
    for directory, _, _ in os.walk(top, topdown=False, onerror=_raise):
        _flush(directory)


def _raise(exc: OSError) -> None:
    raise exc


def _make_directories(root: str, path: str) -> None:
    """Make `path`, and flush every directory from it up to `root`: each holds the next's name."""
    os.makedirs(path, exist_ok=True)
    while path != root:
        _flush(path)
        path = os.path.dirname(path)
    _flush(root)
