"""Two trees of a shared kind as one: the archives of the one, and one more with what it lacks.

Nothing is unpacked, and no archive of the bucket's is fetched: they stay the blobs that they are. As
where a volume's generation grows, theirs wins where both have a file.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from typing import TYPE_CHECKING, Final, Literal

from warmer import ranks
from warmer.errors import using
from warmer.fill import archive, members
from warmer.layout import ARCHIVE, MANIFEST
from warmer.seal import SealedFile

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from collections.abc import Set as AbstractSet

_MEMBERS: Final = 100_000
_ARCHIVES: Final = 256
"""What one piece may come to by joining: a seal and a manifest that every puller reads."""


def standing(
    mine: AbstractSet[str], theirs: AbstractSet[str]
) -> Literal["covered", "grown", "apart"]:
    """Say how a tree stands to the newest one in a bucket, by their paths. Pure.

    Returns:
        `covered`: the bucket has all of it; `grown`: it has all of the bucket's, and more;
        `apart`: each has what the other lacks.
    """
    if mine <= theirs:
        return "covered"
    return "grown" if theirs <= mine else "apart"


def together(mine: members.Manifest, theirs: members.Manifest) -> members.Manifest | None:
    """Say what two trees are as one; None where they contradict each other, or it is too much. Pure."""
    files = {**mine.members, **theirs.members}
    empty = {*mine.empty, *theirs.empty}
    # Sorted so, what lies in a directory comes right after it.
    named = sorted(f"{path}/" for path in {*files, *empty})
    above = {one[:-1] for one, after in itertools.pairwise(named) if after.startswith(one)}
    if (
        files.keys() & (above | empty)
        or len(files) + len(empty) > _MEMBERS
        or ranks.mixed(mine.members, theirs.members)
    ):
        return None
    return members.Manifest(dict(sorted(files.items())), tuple(sorted(empty - above)))


def join(
    mine: members.Manifest,
    archives: Sequence[str],
    theirs: members.Manifest,
    files: Collection[SealedFile],
    target: str,
) -> list[SealedFile] | None:
    """Write what a piece in a bucket lacks, and the manifest of both.

    Args:
        mine: what the archives here hold.
        archives: their paths; whose bytes somebody vouches for.
        theirs: what the piece in the bucket holds.
        files: of the piece in the bucket.
        target: an empty directory.

    Returns:
        All archives and the manifest; those that are in `target` are the new ones. None where the
        trees cannot be one.

    Raises:
        IntegrityError: the archives are not what the manifest says.
        VolumeError: the volume failed.
    """
    both = together(mine, theirs)
    there = [file for file in files if archive.is_one(file.path)]
    if both is None or len(there) >= _ARCHIVES:
        return None
    added = frozenset(mine.members.keys() - theirs.members.keys())
    stem, names = ARCHIVE.removesuffix(archive.ENDING), {file.path for file in there}
    free = (f"{stem}.{number}{archive.ENDING}" for number in itertools.count(1))
    more = os.path.join(target, next(name for name in free if name not in names))
    listing = members.encode(both)
    with using("the volume"):
        new = archive.sift(archives, mine, added, more)
        with open(os.path.join(target, MANIFEST), "wb") as f:
            f.write(listing)
    digest = hashlib.sha256(listing).hexdigest()
    return [*there, new, SealedFile(MANIFEST, len(listing), digest)]
