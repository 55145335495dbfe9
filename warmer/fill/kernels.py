"""Fill the kernel pieces: one engine run builds them all, each tree becomes one generation.

The engine runs with its caches at the paths the server will use, on top of what is already
sealed, so that a second model adds its operations to the shared kinds. A shared kind that
another pod published meanwhile is merged: theirs wins where both have a file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from warmer.errors import using
from warmer.families import EXCLUDED
from warmer.fill import archive, claim, engine, publish, restore
from warmer.layout import ARCHIVE, MANIFEST, SEAL
from warmer.observe import inventory
from warmer.seal import SealedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from warmer.fill.locks import Grant, Lock
    from warmer.layout import Volume, WarmDir
    from warmer.model import Held, Key, Kind

_log = structlog.get_logger(__name__)
_SHARED: Final = ("flashinfer", "jit")


@dataclass(frozen=True, slots=True)
class Builder:
    """How to run the engine once: everything but the caches' state.

    Attributes:
        command: what starts vLLM's command line.
        model_path: the model argument, at the path the server will use.
        serve_argv: the user's `vllm serve` arguments.
        environment: the whole environment of the engine.
        timeout: seconds until it must answer.
    """

    command: Sequence[str]
    model_path: str
    serve_argv: Sequence[str]
    environment: Mapping[str, str]
    timeout: float


def build(
    volume: Volume,
    warm: WarmDir,
    keys: Mapping[Kind, Key],
    held: Mapping[Kind, Held],
    *,
    builder: Builder,
    lock: Lock,
    grant: Grant,
    wait: float,
    tick: Callable[[str], None],
) -> engine.Run:
    """Run the engine under the compile key's grant and publish what it built.

    Args:
        volume: where to.
        warm: where the engine builds.
        keys: the kernel pieces wanted.
        held: what is there of each, looked at under the grant.
        builder: how to run the engine.
        lock: for the shared kinds' own locks.
        grant: the lock on the compile key.
        wait: seconds to wait for another owner of a shared kind.
        tick: called with the engine's latest line.

    Raises:
        EngineError: the engine failed; nothing was published.
        VolumeError: the volume or the warm dir failed.
        IntegrityError: a sealed base is corrupt.
        BusyError: a grant or a race was lost.
    """
    started = time.monotonic()
    bases = {kind: _prepare(volume, warm, key, held[kind]) for kind, key in keys.items()}
    log = os.path.join(warm.logs, f"build-{keys['compile'].short}.log")
    run = engine.run(
        command=builder.command,
        model_path=builder.model_path,
        serve_argv=builder.serve_argv,
        environment=builder.environment,
        log=log,
        timeout=builder.timeout,
        tick=tick,
    )
    if not run.answered:
        _log.warning("the engine answered no completion; kernels built on first use are missing")
    seconds = time.monotonic() - started
    needs: dict[str, int] = {}
    for kind in _SHARED:
        if kind in keys:
            needs[kind] = _publish_shared(
                volume, warm, keys[kind], bases[kind], lock=lock, wait=wait, seconds=seconds
            )
    with using("the warm dir or the volume"):
        _publish(
            volume,
            warm,
            keys["compile"],
            _scan(warm, keys["compile"]),
            grant=grant,
            after=held["compile"].highest,
            seconds=seconds,
            needs=needs,
        )
    return run


def _prepare(volume: Volume, warm: WarmDir, key: Key, held: Held) -> archive.Manifest | None:
    """Bring the kind's tree to what is sealed, or to nothing; return what it was brought to."""
    if held.verdict in ("sealed", "stale"):
        if held.restored and held.verdict == "sealed":
            return restore.read_manifest(volume, key, held.generation)[0]
        return restore.restore(volume, warm, key, held.generation)
    with using("the warm dir"):
        restore.forget(warm, key)
        os.makedirs(warm.tree(key.kind), exist_ok=True)
    return None


def _publish_shared(
    volume: Volume,
    warm: WarmDir,
    key: Key,
    base: archive.Manifest | None,
    *,
    lock: Lock,
    wait: float,
    seconds: float,
) -> int:
    """Publish a shared kind if the run added to it; return the generation that now holds it."""
    with claim.claim(lock, key, wait=wait, filled=lambda: False) as grant:
        numbers = inventory.generations(volume, key.kind, key.digest)
        newest, _ = inventory.judge_generation(volume, key, numbers[0]) if numbers else (None, None)
        with using("the warm dir or the volume"):
            mine = _scan(warm, key)
            if newest is not None and newest.verdict == "sealed":
                theirs, seal_sha256 = restore.read_manifest(volume, key, newest.generation)
                if not mine.members.keys() - theirs.members.keys():
                    if theirs != base:
                        restore.restore(volume, warm, key, newest.generation)
                    else:
                        restore.record(warm, key, newest.generation, seal_sha256)
                    return newest.generation
                if theirs != base:
                    _merge(volume, warm, key, newest.generation, theirs=theirs, mine=mine)
                    mine = _scan(warm, key)
            assert grant is not None  # noqa: S101 - `filled` never says that it is
            after = numbers[0] if numbers else 0
            return _publish(volume, warm, key, mine, grant=grant, after=after, seconds=seconds)


def _merge(
    volume: Volume,
    warm: WarmDir,
    key: Key,
    generation: int,
    *,
    theirs: archive.Manifest,
    mine: archive.Manifest,
) -> None:
    """Make the tree theirs plus the files only we have."""
    tree = warm.tree(key.kind)
    old = f"{tree}.{secrets.token_hex(4)}.mine"
    os.rename(tree, old)
    try:
        restore.restore(volume, warm, key, generation)
        for path in mine.members.keys() - theirs.members.keys():
            place = os.path.join(tree, path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.rename(os.path.join(old, path), place)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _scan(warm: WarmDir, key: Key) -> archive.Manifest:
    return archive.scan(warm.tree(key.kind), EXCLUDED)


def _publish(
    volume: Volume,
    warm: WarmDir,
    key: Key,
    manifest: archive.Manifest,
    *,
    grant: Grant,
    after: int,
    seconds: float,
    needs: Mapping[str, int] | None = None,
) -> int:
    for path in publish.abandoned(volume, key):
        publish.discard(publish.Staging(path, key, ""))
    staging = publish.begin(volume, key)
    try:
        packed = archive.pack(warm.tree(key.kind), manifest, os.path.join(staging.path, ARCHIVE))
        listing = archive.encode(manifest)
        with open(os.path.join(staging.path, MANIFEST), "wb") as f:
            f.write(listing)
        sealed = SealedFile(MANIFEST, len(listing), hashlib.sha256(listing).hexdigest())
        number = publish.publish(
            volume,
            staging,
            files=[packed, sealed],
            grant=grant,
            after=after,
            source="engine run",
            seconds=seconds,
            needs=needs,
        )
    except BaseException:
        publish.discard(staging)
        raise
    path = os.path.join(volume.generation(key.kind, key.digest, number), SEAL)
    with open(path, "rb") as f:
        restore.record(warm, key, number, hashlib.sha256(f.read()).hexdigest())
    _log.info(
        "published",
        kind=key.kind,
        key=key.short,
        generation=number,
        files=len(manifest.members),
        bytes=packed.size,
    )
    return number
