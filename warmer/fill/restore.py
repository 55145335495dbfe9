"""A sealed kernel generation → the warm dir, at the absolute path it was built at.

The tree is unpacked beside its place and swapped in by rename, and the record of what it is
comes last: a killed restore is done again. The chain of trust is seal → manifest → member.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from warmer import ranks, regular
from warmer.errors import IntegrityError, using
from warmer.fill import archive, members
from warmer.layout import MANIFEST
from warmer.observe import inventory
from warmer.seal import ForeignSealError, Seal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warmer.layout import Volume, WarmDir
    from warmer.model import Key, Kind
    from warmer.trust import Trust

_SIDE_BY_SIDE: Final = 8


def read_manifest(
    volume: Volume, key: Key, generation: int, *, trust: Trust
) -> tuple[members.Manifest, str]:
    """Read a published generation's manifest, checked against its seal, and that by who signed it.

    Returns:
        The manifest, and the sha256 of the seal it was checked against.

    Raises:
        IntegrityError: it is not what the seal says, or nobody who is trusted says it.
        VolumeError: the volume failed.
    """
    _, manifest, seal_sha256 = _read(volume, key, generation, trust)
    return manifest, seal_sha256


def _read(
    volume: Volume, key: Key, generation: int, trust: Trust
) -> tuple[Seal, members.Manifest, str]:
    """Read the seal once, and what it says of the manifest."""
    directory = volume.generation(key.kind, key.digest, generation)
    path = os.path.join(directory, MANIFEST)
    with using("the volume"):
        try:
            record, seal_data = inventory.read_seal(directory)
        except ForeignSealError as exc:
            raise IntegrityError(
                f"got a seal of another format in {directory}, expected the one that was looked at",
                reason="foreign-seal",
                hint="something else writes on the volume; run `warmer prefill` again",
            ) from exc
    if why := inventory.objection(record, key, generation, trust):
        raise IntegrityError(
            f"got {directory}, which {why}, expected what was looked at",
            reason="signature-rejected" if trust.keys else "foreign-seal",
            hint="something else writes on the volume; run `warmer prefill` again",
        )
    if all(file.path != MANIFEST for file in record.files):
        raise members.refuse(directory, f"its seal names no {MANIFEST}")
    with using("the volume"):
        try:
            data = regular.read(path, most=members.LONGEST)
        except regular.OddFileError as exc:
            raise _odd(path, exc) from exc
    _compare(path, hashlib.sha256(data).hexdigest(), record)
    return record, members.parse(data, where=path), hashlib.sha256(seal_data).hexdigest()


def _odd(path: str, exc: regular.OddFileError) -> IntegrityError:
    return IntegrityError(
        f"got {path}, which {exc}, expected the sealed file",
        reason="odd-file",
        hint="something else writes on the volume; run `warmer prefill` again",
    )


def _compare(path: str, sha256: str, record: Seal) -> None:
    sealed = {file.path: file.sha256 for file in record.files}
    if sealed.get(os.path.basename(path)) != sha256:
        raise IntegrityError(
            f"got {path} with other bytes than its seal says, expected the sealed ones",
            reason="hash-mismatch",
            hint="run `warmer prefill`: it moves what is corrupt aside and builds it again",
        )


def _sha256(path: str, size: int) -> str:
    """Hash a sealed file; one that grew since the look is not read to its end.

    Raises:
        IntegrityError: it is no regular file, or of another size.
    """
    try:
        descriptor = regular.opened(path)
    except regular.OddFileError as exc:
        raise _odd(path, exc) from exc
    with open(descriptor, "rb") as f:
        if os.fstat(descriptor).st_size != size:
            raise _odd(path, regular.OddFileError(f"has not the {size} bytes that its seal says"))
        return hashlib.file_digest(f, "sha256").hexdigest()


def intact(volume: Volume, key: Key, generation: int) -> bool:
    """Re-hash a published generation; False where a byte differs from its seal.

    Raises:
        VolumeError: the volume failed.
    """
    return whole(volume.generation(key.kind, key.digest, generation))


def whole(directory: str) -> bool:
    """Re-hash a generation wherever it lies; False where a byte differs from its seal.

    Raises:
        VolumeError: the volume failed.
    """
    with using("the volume"):
        try:
            record, _ = inventory.read_seal(directory)
            for file in record.files:
                path = os.path.join(directory, file.path)
                if _sha256(path, file.size) != file.sha256:
                    return False
        except (FileNotFoundError, IntegrityError, ForeignSealError):
            return False
    return True


def unpacks(volume: Volume, warm: WarmDir, key: Key, generation: int, *, trust: Trust) -> bool:
    """Try whether a generation can be unpacked; False where no look at its bytes ever ends well.

    Raises:
        VolumeError: the volume or the warm dir failed.
    """
    try:
        _, fresh, _ = _unpacked(volume, warm, key, generation, trust)
    except IntegrityError as exc:
        return exc.reason != members.UNFIT
    shutil.rmtree(fresh, ignore_errors=True)
    return True


def restore(
    volume: Volume, warm: WarmDir, key: Key, generation: int, *, trust: Trust
) -> members.Manifest:
    """Unpack a generation into the warm dir and record it.

    Returns:
        What the tree now holds.

    Raises:
        IntegrityError: the archive is not what its seal says, or nobody who is trusted says it; the
            old tree stays.
        VolumeError: the volume or the warm dir failed.
    """
    manifest, fresh, seal_sha256 = _unpacked(volume, warm, key, generation, trust)
    try:
        with using("the warm dir"):
            forget(warm, key.kind)
            os.rename(fresh, warm.tree(key.kind))
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    record(warm, key, generation, seal_sha256, holds=manifest.members)
    return manifest


def _unpacked(
    volume: Volume, warm: WarmDir, key: Key, generation: int, trust: Trust
) -> tuple[members.Manifest, str, str]:
    """Unpack a generation beside its place.

    Returns:
        What it holds, where that lies, and the sha256 of the seal that says so.
    """
    sealed, manifest, seal_sha256 = _read(volume, key, generation, trust)
    directory = volume.generation(key.kind, key.digest, generation)
    with using("the volume"):  # nothing parses bytes that nobody vouches for
        archives = [file for file in sealed.files if archive.is_one(file.path)]
        sources = [os.path.join(directory, file.path) for file in archives]
        sizes = [file.size for file in archives]
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            for path, sha256 in zip(sources, pool.map(_sha256, sources, sizes), strict=True):
                _compare(path, sha256, sealed)
    fresh = f"{warm.tree(key.kind)}.{secrets.token_hex(4)}"
    try:
        with using("the warm dir or the volume"):
            os.makedirs(warm.cache, exist_ok=True)
            archive.unpack(sources, manifest, fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return manifest, fresh, seal_sha256


def forget(warm: WarmDir, kind: Kind) -> bool:
    """Drop the kind's tree and its record: what is there must not be taken for a piece.

    Returns:
        Whether there was a tree.

    Raises:
        VolumeError: the warm dir failed.
    """
    with using("the warm dir"):
        distrust(warm, kind)
        tree = warm.tree(kind)
        if os.path.lexists(tree):
            old = f"{tree}.{secrets.token_hex(4)}"
            os.rename(tree, old)
            shutil.rmtree(old, ignore_errors=True)
            return True
    return False


def distrust(warm: WarmDir, kind: Kind) -> None:
    """Drop the kind's record alone: an engine is about to write into the tree."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(warm.restored(kind))


def sweep(warm: WarmDir) -> None:
    """Remove what killed restores left beside the trees; the caller holds the warm dir's lock."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(warm.cache):
            if entry.is_dir(follow_symlinks=False) and "." in entry.name:
                shutil.rmtree(entry.path, ignore_errors=True)


def record(
    warm: WarmDir, key: Key, generation: int, seal_sha256: str, *, holds: Iterable[str] = ()
) -> None:
    """Record that the kind's tree is what this generation holds, as long as this node is up.

    Of several ranks, what belongs to one alone is named, so that it can be seen to be there.

    The tree is not flushed: a power cut may take it and leave the record. So the record names
    the boot it was written in, and counts in no other.
    """
    several = key.kind == "compile" and ranks.world(key.factors).several
    entry = {
        "key": key.digest,
        "generation": generation,
        "seal_sha256": seal_sha256,
        "boot": inventory.boot(),
        "ranks": ranks.ranked(holds) if several else [],
    }
    path = warm.restored(key.kind)
    with using("the warm dir"):
        with open(path + ".tmp", "w", encoding="utf-8") as f:
            json.dump(entry, f)
        os.replace(path + ".tmp", path)
