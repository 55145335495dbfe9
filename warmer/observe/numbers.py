"""Which numbers the generations of a piece have, and which were ever given. Reads only.

On NFS a name that was looked for before it existed is not seen until the directory's attributes
are fetched again, up to 25 s later; opening the directory fetches them. Every look here reopens
the directory first, and where even that is missing, all that lead to it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from warmer.model import KINDS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warmer.layout import Volume

_GENERATION: Final = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_ASIDE: Final = re.compile(
    rf"({'|'.join(KINDS)})-([0-9a-f]{{64}})-([1-9][0-9]{{0,17}})(?:[-.].*)?", re.ASCII
)
LEAP: Final = 1_000_000
"""How far a number may be above the next lower one to be warmer's, which counts by ones.

gc removes lower numbers, so that there are gaps; no key is filled a million times. Whatever name
is made on the volume, the number after the highest that counts can be given.
"""


class Aside(NamedTuple):
    """What the name of a generation says that is no longer under ``pieces/``."""

    kind: Kind
    digest: str
    number: int


def aside(name: str) -> Aside | None:
    """Read a name in ``quarantine/``, ``trash/`` or ``taken/``; None where it is not warmer's."""
    found = _ASIDE.fullmatch(name)
    return Aside(cast("Kind", found[1]), found[2], int(found[3])) if found else None


def highest_taken(volume: Volume, kind: Kind, digest: str) -> int:
    """Find the highest number ever given to a generation of a key, whatever became of it.

    Seals name generations of other pieces by number, so that a number is never used twice. That
    two writers never publish one does not rest on this: the rename onto a name that is there fails.
    """
    taken = {*_published(volume, kind, digest), *moved(volume).get((kind, digest), ())}
    return max(counted(taken), default=0)


def generations(volume: Volume, kind: Kind, digest: str) -> list[int]:
    """List the generation numbers published under a key, newest first.

    Names of numbers that warmer cannot have come to are none of its own.
    """
    found = _published(volume, kind, digest)
    ours = counted(found)
    if len(ours) < len(found):  # numbers in between may have been removed
        all_of_them = set(counted(found | moved(volume).get((kind, digest), set())))
        ours = sorted(found & all_of_them)
    return ours[::-1]


def _published(volume: Volume, kind: Kind, digest: str) -> set[int]:
    try:
        names = listing(volume, volume.key(kind, digest))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    return {int(name) for name in names if _GENERATION.fullmatch(name)}


def moved(volume: Volume) -> dict[tuple[Kind, str], set[int]]:
    """List the numbers of every key that were moved aside, or are taken for good."""
    found: dict[tuple[Kind, str], set[int]] = {}
    for place in (volume.quarantine, volume.trash, volume.taken):
        try:
            names = listing(volume, place)
        except FileNotFoundError:
            continue
        for one in map(aside, names):
            if one is not None:
                found.setdefault((one.kind, one.digest), set()).add(one.number)
    return found


def counted(numbers: Iterable[int]) -> list[int]:
    """Return the numbers that counting by ones can have come to, the lowest first."""
    found: list[int] = []
    for number in sorted(numbers):
        if number - (found[-1] if found else 0) > LEAP:
            break
        found.append(number)
    return found


def listing(volume: Volume, path: str) -> list[str]:
    """List a directory of the volume as the server has it now.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    try:
        return _list(path)
    except FileNotFoundError:
        # That it is missing may itself be remembered, by any directory on the way to it.
        way = [path]
        while way[-1] != volume.root:
            way.append(os.path.dirname(way[-1]))
        for directory in reversed(way[1:]):
            os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        return _list(path)


def _list(path: str) -> list[str]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)
