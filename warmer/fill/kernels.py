"""Fill the kernel pieces: one engine run builds them all, each tree becomes one generation.

The engine runs with its caches at the paths the server will use, on top of what is already
sealed, so that a second model adds its operations to the shared kinds. A shared kind that
another pod published meanwhile is merged: theirs wins where both have a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from warmer.errors import VolumeError, using
from warmer.families import EXCLUDED
from warmer.fill import archive, engine, publish, restore, stagings
from warmer.layout import ARCHIVE, MANIFEST, SEAL
from warmer.observe import inventory, numbers
from warmer.seal import SealedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from warmer.fill.claim import Claims
    from warmer.fill.locks import Grant
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
    claims: Claims,
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
        claims: for the shared kinds' own locks.
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
    compiled = keys["compile"]

    def told(line: str) -> None:
        grant.note("building kernels")
        tick(line)

    with using("the volume"):
        after = numbers.highest_taken(volume, "compile", compiled.digest)
    stagings.sweep(volume, compiled, grant)
    try:
        for kind, key in keys.items():
            _prepare(volume, warm, key, held[kind])
        run = engine.run(
            command=builder.command,
            model_path=builder.model_path,
            serve_argv=builder.serve_argv,
            environment=builder.environment,
            log=os.path.join(warm.logs, f"build-{compiled.short}.log"),
            timeout=builder.timeout,
            settled=lambda: {kind: _sizes(warm.tree(kind)) for kind in keys},
            tick=told,
        )
        if not run.answered:
            _log.warning("the engine completed no text; kernels built on first use are missing")
        grant.note("publishing")
        seconds = time.monotonic() - started
        needs = {
            kind: _publish_shared(
                volume, warm, keys[kind], claims=claims, wait=wait, seconds=seconds
            )
            for kind in _SHARED
            if kind in keys
        }
        _publish(volume, warm, compiled, grant=grant, after=after, seconds=seconds, needs=needs)
    except BaseException:
        # What a run that failed left behind may be torn: no server may load it. What cannot be
        # removed has no record, and removing it again comes before the handoff.
        for kind in keys:
            with contextlib.suppress(VolumeError):
                restore.forget(warm, kind)
        raise
    return run


def _prepare(volume: Volume, warm: WarmDir, key: Key, held: Held) -> None:
    """Bring the kind's tree to what is sealed, or to nothing, and record neither.

    Until the run has ended well, the tree is no piece: a record would outlive a kill.
    """
    if held.verdict in ("sealed", "stale"):
        restore.restore(volume, warm, key, held.generation)
        restore.distrust(warm, key.kind)
        return
    restore.forget(warm, key.kind)
    with using("the warm dir"):
        os.makedirs(warm.tree(key.kind))


def _publish_shared(
    volume: Volume, warm: WarmDir, key: Key, *, claims: Claims, wait: float, seconds: float
) -> int:
    """Publish a shared kind if the run added to it; return the generation that now holds it.

    Generations only grow: a file that is published stays as it is, whoever built another.
    """
    with claims.claim(key, wait=wait, filled=lambda: False) as grant:
        if grant is None:
            raise AssertionError("`filled` never says that it is")
        with using("the volume"):
            after = numbers.highest_taken(volume, key.kind, key.digest)
        stagings.sweep(volume, key, grant)
        held = inventory.observe(volume, warm, {key.kind: key}, neighbours=False).held[key.kind]
        if held.verdict == "sealed":
            mine = set(_scan(warm, key).members)
            theirs, seal_sha256 = restore.read_manifest(volume, key, held.generation)
            _merge(volume, warm, key, held.generation, added=mine - theirs.members.keys())
            if mine <= theirs.members.keys():
                restore.record(warm, key, held.generation, seal_sha256)
                return held.generation
        return _publish(volume, warm, key, grant=grant, after=after, seconds=seconds)


def _merge(
    volume: Volume, warm: WarmDir, key: Key, generation: int, *, added: Iterable[str]
) -> None:
    """Make the tree a published generation plus the files that only this run has."""
    tree = warm.tree(key.kind)
    mine = f"{tree}.{secrets.token_hex(4)}"
    try:
        with using("the warm dir"):
            os.rename(tree, mine)
        restore.restore(volume, warm, key, generation)
        restore.distrust(warm, key.kind)
        with using("the warm dir"):
            for path in added:
                place = os.path.join(tree, path)
                os.makedirs(os.path.dirname(place), exist_ok=True)
                os.rename(os.path.join(mine, path), place)
    finally:
        shutil.rmtree(mine, ignore_errors=True)


def _sizes(tree: str) -> dict[str, int]:
    """Take a snapshot of a tree that an engine may be writing."""
    sizes: dict[str, int] = {}
    for directory, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                sizes[path] = os.stat(path).st_size
    return sizes


def _scan(warm: WarmDir, key: Key) -> archive.Manifest:
    return archive.scan(warm.tree(key.kind), EXCLUDED)


def _publish(
    volume: Volume,
    warm: WarmDir,
    key: Key,
    *,
    grant: Grant,
    after: int,
    seconds: float,
    needs: Mapping[str, int] | None = None,
) -> int:
    """Publish the kind's tree as it is, and record that it is what the generation holds."""
    staging = stagings.begin(volume, key)
    with stagings.staged(staging, grant):
        with using("the warm dir or the volume"):
            manifest = _scan(warm, key)
            tree, target = warm.tree(key.kind), os.path.join(staging.path, ARCHIVE)
            packed = archive.pack(tree, manifest, target)
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
    with (
        using("the volume"),
        open(os.path.join(volume.generation(key.kind, key.digest, number), SEAL), "rb") as f,
    ):
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
