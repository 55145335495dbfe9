"""A kernel kind's tree in the warm dir ↔ the generations of its key.

A shared kind that another pod published meanwhile is merged: theirs wins where both have a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Final

import structlog

from warmer import ranks, regular
from warmer.errors import EngineError, VolumeError, using
from warmer.families import excluded
from warmer.fill import archive, leaks, members, publish, restore, stagings
from warmer.layout import ARCHIVE, MANIFEST, SEAL
from warmer.observe import inventory, numbers
from warmer.seal import ENGINE_RUN, LONGEST, SealedFile

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from warmer.fill.claim import Claims
    from warmer.fill.locks import Grant
    from warmer.layout import Volume, WarmDir
    from warmer.model import Held, Key
    from warmer.trust import Trust

_log = structlog.get_logger(__name__)
_ALONE: Final = ranks.World()


def prepare(volume: Volume, warm: WarmDir, key: Key, held: Held, *, trust: Trust) -> None:
    """Bring the kind's tree to what is sealed, or to nothing, and record neither.

    Until the run has ended well, the tree is no piece: a record would outlive a kill.
    """
    if held.verdict in ("sealed", "stale") and not held.crashed:
        restore.restore(volume, warm, key, held.generation, trust=trust)
        restore.distrust(warm, key.kind)
        return
    clear(warm, key)


def clear(warm: WarmDir, key: Key) -> None:
    """Have an empty tree for a kind, and no record of it."""
    restore.forget(warm, key.kind)
    with using("the warm dir"):
        os.makedirs(warm.tree(key.kind))


def publish_shared(
    volume: Volume,
    warm: WarmDir,
    key: Key,
    *,
    claims: Claims,
    wait: float,
    seconds: float,
    trust: Trust,
    secrets: Mapping[str, str],
    source: str = ENGINE_RUN,
    world: ranks.World = _ALONE,
) -> int:
    """Publish a shared kind if the run added to it; return the generation that now holds it.

    Generations only grow: a file that is published stays as it is, whoever built another. What the
    run added for some of the ranks of its `world` and not for all is left out.
    """
    with claims.claim(key, wait=wait, filled=lambda: False) as grant:
        if grant is None:
            raise AssertionError("`filled` never says that it is")
        with using("the volume"):
            after = numbers.highest_taken(volume, key.kind, key.digest)
        stagings.sweep(volume, key, grant)
        look = inventory.observe(volume, warm, {key.kind: key}, trust=trust, neighbours=False)
        held = look.held[key.kind]
        clean(warm, key, secrets)
        if held.verdict == "sealed":
            theirs, seal_sha256 = restore.read_manifest(volume, key, held.generation, trust=trust)
            mine = set(_scan(warm, key).members)
            mine -= _drop_torn(warm, key, mine, theirs.members.keys(), world)
            added = mine - theirs.members.keys()
            _merge(volume, warm, key, held.generation, added=added, trust=trust)
            if mine <= theirs.members.keys():
                restore.record(warm, key, held.generation, seal_sha256)
                return held.generation
        _drop_torn(warm, key, set(_scan(warm, key).members), (), world)
        return publish_tree(
            volume,
            warm,
            key,
            grant=grant,
            after=after,
            seconds=seconds,
            trust=trust,
            secrets=secrets,
            source=source,
        )


def _drop_torn(
    warm: WarmDir, key: Key, mine: set[str], theirs: Container[str], world: ranks.World
) -> set[str]:
    """Remove tuning that is not whole from a tree to be published; return what is removed."""
    bad = ranks.torn(mine, {path for path in mine if path not in theirs}, world)
    for path in bad:
        _log.warning("tuning is not there of every rank: it is not published", file=path)
        with using("the warm dir"):
            os.unlink(os.path.join(warm.tree(key.kind), path))
    return set(bad)


def _merge(
    volume: Volume,
    warm: WarmDir,
    key: Key,
    generation: int,
    *,
    added: Iterable[str],
    trust: Trust,
) -> None:
    """Make the tree a published generation plus the files that only this run has."""
    tree = warm.tree(key.kind)
    mine = f"{tree}.{secrets.token_hex(4)}"
    try:
        with using("the warm dir"):
            os.rename(tree, mine)
        restore.restore(volume, warm, key, generation, trust=trust)
        restore.distrust(warm, key.kind)
        with using("the warm dir"):
            for path in added:
                place = os.path.join(tree, path)
                os.makedirs(os.path.dirname(place), exist_ok=True)
                os.rename(os.path.join(mine, path), place)
    finally:
        shutil.rmtree(mine, ignore_errors=True)


def clean(warm: WarmDir, key: Key, secrets: Mapping[str, str]) -> None:
    """Remove the files that hold one of the secrets (name → value) from a tree to be published.

    Raises:
        VolumeError: the warm dir failed.
    """
    if key.kind == "bytecode":  # of the image's own sources, which anybody may read
        return
    with using("the warm dir"):
        found = leaks.remove(warm.tree(key.kind), excluded(key.kind), secrets)
    for path, name in found.items():
        _log.warning(
            "the engine wrote a secret into its cache: the file is not published",
            kind=key.kind,
            file=path
            if path.isprintable() and secrets[name] not in path
            else "(its name holds it)",
            variable=name,
        )


def whole(key: Key, paths: Iterable[str]) -> None:
    """Insist that a tree which is to be published has something of every rank.

    Raises:
        EngineError: it lacks a rank's.
    """
    if key.kind != "compile":
        return
    ours = ranks.world(key.factors)
    if missing := ranks.lacking(paths, ours):
        raise EngineError(
            f"got no compiled code of {ranks.named(missing)}, expected it of all {ours.size} ranks",
            reason="missing-rank",
            hint="the engine's log says why it did not save it; run again",
        )


def _scan(warm: WarmDir, key: Key) -> members.Manifest:
    return members.scan(warm.tree(key.kind), excluded(key.kind))


def publish_tree(
    volume: Volume,
    warm: WarmDir,
    key: Key,
    *,
    grant: Grant,
    after: int,
    seconds: float,
    needs: Mapping[str, int] | None = None,
    trust: Trust,
    secrets: Mapping[str, str],
    source: str = ENGINE_RUN,
) -> int:
    """Publish the kind's tree as it is, and record that it is what the generation holds.

    Files that hold one of the secrets (name → value) are removed first.

    Raises:
        EngineError: a rank of the engine has built nothing.
        VolumeError: the volume or the warm dir failed.
        BusyError: the grant or a race was lost.
    """
    clean(warm, key, secrets)
    staging = stagings.name(volume, key)
    with stagings.staged(staging, grant):
        stagings.make(staging)
        with using("the warm dir or the volume"):
            manifest = _scan(warm, key)
            whole(key, manifest.members)
            tree, target = warm.tree(key.kind), os.path.join(staging.path, ARCHIVE)
            packed = archive.pack(tree, manifest, target)
            listing = members.encode(manifest)
            if len(manifest.members) > members.MOST or len(listing) > members.LONGEST:
                raise VolumeError(
                    f"got {len(manifest.members)} files in {tree}, expected {members.MOST} at most",
                    reason="too-many-files",
                    hint="look at what the engine writes there",
                )
            with open(os.path.join(staging.path, MANIFEST), "wb") as f:
                f.write(listing)
        sealed = SealedFile(MANIFEST, len(listing), hashlib.sha256(listing).hexdigest())
        number = publish.publish(
            volume,
            staging,
            files=[*packed, sealed],
            grant=grant,
            after=after,
            source=source,
            seconds=seconds,
            needs=needs,
            trust=trust,
        )
    path = os.path.join(volume.generation(key.kind, key.digest, number), SEAL)
    with contextlib.suppress(regular.OddFileError):  # swapped already: the next look says it
        with using("the volume"):
            data = regular.read(path, most=LONGEST)
        digest = hashlib.sha256(data).hexdigest()
        restore.record(warm, key, number, digest, holds=manifest.members)
    _log.info(
        "published",
        kind=key.kind,
        key=key.short,
        generation=number,
        files=len(manifest.members),
        bytes=sum(file.size for file in packed),
    )
    return number
