"""Who else can write on the volume, as far as owners and modes say: kernels are code.

Access lists, and what an NFS server makes of users, are not seen here.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from warmer.doctor.findings import Finding
from warmer.errors import IntegrityError
from warmer.model import KERNEL_KINDS
from warmer.observe import inventory, numbers
from warmer.seal import ForeignSealError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from warmer.layout import Volume

_NAME: Final = "writers"
_KEYS: Final = 64
"""Keys of each kind that are looked at for signatures."""
_HINT: Final = (
    "whoever can write can publish kernels, which are code: sign them (`warmer keygen`, "
    "docs/trust.md), or give the volume to one user or group"
)


def others(volume: Volume) -> Finding:
    """Say who else than this user and group may write, and whether signatures make up for it."""
    who: set[str] = set()
    try:
        for directory in _directories(volume):
            who |= _writers(os.lstat(directory))
        if not who:
            return Finding(_NAME, "ok", "this user, this group and root alone")
        found = f"{', '.join(sorted(who))} may write too"
        kernels, unsigned = _kernels(volume)
    except OSError as exc:
        return Finding(_NAME, "warn", f"cannot be told: {exc.strerror}", _HINT)
    if kernels and not unsigned:
        hint = "let every pod be told --trusted-keys: a signature counts where it is asked for"
        return Finding(
            _NAME, "ok", f"{found}; all {kernels} kernel pieces looked at are signed", hint
        )
    return Finding(_NAME, "warn", found, _HINT)


def _directories(volume: Volume) -> Iterator[str]:
    """The directories in which warmer makes names, as far as they are there."""
    places = [volume.root, volume.top, volume.pieces, volume.staging, volume.quarantine]
    places += [volume.trash, volume.taken, volume.uses]
    places += [os.path.join(volume.top, name) for name in ("locks", "refs")]
    places += [volume.kind(kind) for kind in KERNEL_KINDS]
    return (place for place in places if os.path.isdir(place))


def _writers(info: os.stat_result) -> set[str]:
    mode = info.st_mode
    found: set[str] = set()
    if info.st_uid not in (0, os.geteuid()):
        found.add(f"user {info.st_uid}")
    if mode & stat.S_IWGRP and info.st_gid not in (os.getegid(), *os.getgroups()):
        found.add(f"group {info.st_gid}")
    if mode & stat.S_IWOTH:
        # Sticky or not: to make a name is enough.
        found.add("everybody")
    return found


def _kernels(volume: Volume) -> tuple[int, int]:
    """Count the newest generations of kernels that were looked at, and the unsigned among them."""
    seen = unsigned = 0
    for kind in KERNEL_KINDS:
        try:
            digests = sorted(numbers.listing(volume, volume.kind(kind)))[:_KEYS]
        except FileNotFoundError:
            continue
        for digest in digests:
            for number in numbers.generations(volume, kind, digest)[:1]:
                seen += 1
                try:
                    record, _ = inventory.read_seal(volume.generation(kind, digest, number))
                    unsigned += not record.signatures
                except (OSError, IntegrityError, ForeignSealError):
                    unsigned += 1
    return seen, unsigned
