"""Bring kernels from the bucket to the volume: staged, proved, and out by the one door.

What is pulled is the same piece: its files, its signatures and what its build took. Its number is
the volume's next, and its `needs` are the volume's generations of what the bucket's numbers name.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Final

import structlog

from warmer import regular
from warmer.errors import IntegrityError, SourceError, using
from warmer.fill import capacity, publish, restore, stagings
from warmer.fill.remote import catalogue, fetch, retired
from warmer.layout import KEY
from warmer.model import Key
from warmer.observe import inventory, numbers, presence
from warmer.seal import HARVESTS
from warmer.trust import ANYBODY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from warmer.fill.claim import Claims
    from warmer.fill.locks import Grant
    from warmer.fill.remote.bucket import Bucket
    from warmer.fill.remote.catalogue import Found
    from warmer.layout import Volume, WarmDir
    from warmer.model import Held, Kind
    from warmer.trust import Trust

_log = structlog.get_logger(__name__)
_TRIES: Final = 2
"""Pieces of one key whose bytes may turn out wrong or gone: the newest, and one older."""


class Puller:
    """Pulls the pieces of one pod.

    Args:
        bucket: where from.
        volume: where to.
        warm: for looks at the volume.
        keys: the kernel pieces wanted.
        claims: for their locks.
        trust: whose kernels count.
    """

    def __init__(
        self,
        bucket: Bucket,
        volume: Volume,
        warm: WarmDir,
        keys: Mapping[Kind, Key],
        *,
        claims: Claims,
        trust: Trust,
    ) -> None:
        self._bucket = bucket
        self._volume = volume
        self._warm = warm
        self._keys = keys
        self._claims = claims
        self._wait = 0.0
        self._trust = trust
        self._from: dict[Kind, int] = {}  # the number in the bucket of what was pulled
        self.pulled: dict[Kind, int] = {}
        """Kind → bytes that came."""

    def pull(self, kind: Kind, *, wait: float, within: float) -> None:
        """Have the bucket's newest acceptable piece on the volume, unless one is sealed there.

        Args:
            kind: of the piece.
            wait: seconds to wait for another owner of it, or of what it needs.
            within: seconds that pulling may take, however well it goes.

        Raises:
            SourceError: the service failed or refused.
            VolumeError: the volume failed, or is too small.
            BusyError: another owner is still filling, or a grant or a race was lost.
            LockError: the lock's service failed or refused.
        """
        key, self._wait = self._keys[kind], wait

        def filled() -> bool:
            return self._look(key).verdict == "sealed"

        with self._claims.claim(key, wait=self._wait, filled=filled) as grant:
            if grant is None:
                return
            after = self._taken(key)
            if not filled():
                self._bucket.until = time.monotonic() + within
                self._newest(key, grant, after, self._needs)

    def _needs(self, found: Found) -> Mapping[str, int] | None:
        """Say which generations here a piece is built beside; None where one cannot be had."""
        needs: dict[str, int] = {}
        for kind, key in self._keys.items():
            if (number := found.seal.needs.get(kind)) and kind != found.seal.kind:
                generation = self._beside(key, number)
                if generation is None:
                    _log.warning(
                        "a piece in the bucket needs another that cannot be had",
                        kind=found.seal.kind,
                        number=found.number,
                        needs=f"{kind} {number}",
                    )
                    return None
                needs[kind] = generation
        return needs

    def _beside(self, key: Key, number: int) -> int | None:
        """Have what a number of the bucket holds; return the generation here that holds it.

        Generations only grow, here as there: one that has every file of another stands for it.
        What is here is grown by pulling one that has all of it too, and is never merged.
        """
        with self._claims.claim(key, wait=self._wait, filled=lambda: False) as grant:
            if grant is None:
                raise AssertionError("`filled` never says that it is")
            after = self._taken(key)
            held = self._look(key)
            here: frozenset[str] = frozenset()
            if held.verdict == "sealed":
                if self._from.get(key.kind, 0) >= number:
                    return held.generation
                manifest, _ = restore.read_manifest(
                    self._volume, key, held.generation, trust=self._trust
                )
                here = frozenset(manifest.members)
                if self._has(key, number, here):
                    return held.generation

            def grown(found: Found) -> Mapping[str, int] | None:
                more = found.number >= number and here <= catalogue.paths(self._bucket, found)
                return {} if more else None

            return self._newest(key, grant, after, grown)

    def _has(self, key: Key, number: int, here: frozenset[str]) -> bool:
        """Whether what is here has all that a number of the bucket has; no where that is not told."""
        try:
            for found in catalogue.acceptable(self._bucket, key, [number], self._trust):
                return catalogue.paths(self._bucket, found) <= here
        except (IntegrityError, SourceError) as exc:
            if isinstance(exc, SourceError) and exc.reason != "not-found":
                raise
        return False

    def _taken(self, key: Key) -> int:
        with using("the volume"):
            return numbers.highest_taken(self._volume, key.kind, key.digest)

    def _newest(
        self,
        key: Key,
        grant: Grant,
        after: int,
        needs: Callable[[Found], Mapping[str, int] | None],
    ) -> int | None:
        """Pull the newest piece for which `needs` says what it is built beside.

        Args:
            key: the piece.
            grant: the lock on it.
            after: the highest number taken here before the last look: who publishes since has won.
            needs: see there.

        Returns:
            Its generation here; None where there is none that can be had.
        """
        stagings.sweep(self._volume, key, grant)
        grant.note("pulling")
        failures = 0
        there = self._bucket.numbers(key)
        for found in catalogue.acceptable(self._bucket, key, there, self._trust):
            if retired.here(self._volume, found.seal):
                _log.warning(
                    "a piece in the bucket was moved aside here",
                    kind=key.kind,
                    number=found.number,
                )
                continue
            try:
                beside = needs(found)
                if beside is None:
                    continue
                return self._take(key, found, grant, after, beside)
            except (IntegrityError, SourceError) as exc:
                if isinstance(exc, SourceError) and exc.reason != "not-found":
                    raise
                failures += 1
                _log.warning(
                    "a piece in the bucket cannot be used",
                    kind=key.kind,
                    number=found.number,
                    failure=exc.message,
                    hint=exc.hint,
                )
            if failures == _TRIES:
                break
        _log.info("nothing to pull", kind=key.kind, key=key.short, there=len(there))
        return None

    def _take(
        self, key: Key, found: Found, grant: Grant, after: int, needs: Mapping[str, int]
    ) -> int:
        record = found.seal
        _log.info("pulling", kind=key.kind, key=key.short, number=found.number, bytes=record.size)
        staging = stagings.name(self._volume, key)
        with stagings.staged(staging, grant):
            stagings.make(staging)
            capacity.require(staging.path, record.size)
            fetch.fetch(self._bucket, record.files, staging.path, grant)
            _insist_on_key(staging.path, key)
            if missing := presence.lacking(staging.path, key):
                raise IntegrityError(
                    f"got a piece that lacks the compiled code of {missing}, expected all ranks'",
                    reason="missing-rank",
                    hint="an older warmer has pushed it; build it again, and it is pushed anew",
                )
            grant.note("publishing")
            number = publish.publish(
                self._volume,
                staging,
                files=record.files,
                grant=grant,
                after=after,
                # Whether servers that restore it may need the hub goes with the piece.
                source=record.source if record.source in HARVESTS else str(self._bucket.url),
                seconds=record.seconds,
                needs=needs,
                trust=ANYBODY,  # who built it has signed it, or nobody has
                signatures=record.signatures,
            )
        self._from[key.kind] = found.number
        self.pulled[key.kind] = self.pulled.get(key.kind, 0) + record.size
        _log.info("pulled", kind=key.kind, key=key.short, number=found.number, generation=number)
        return number

    def _look(self, key: Key) -> Held:
        look = inventory.observe(
            self._volume, self._warm, {key.kind: key}, trust=self._trust, neighbours=False
        )
        return look.held[key.kind]


def _insist_on_key(staging: str, key: Key) -> None:
    """Insist that the factors beside a piece are its key's: people and comparisons read them.

    Raises:
        IntegrityError: they are others, or none.
    """
    try:
        with using("the volume"):
            data = regular.read(os.path.join(staging, KEY))
        same = Key(key.kind, json.loads(data)["factors"]).digest == key.digest
    except (ValueError, KeyError, TypeError, RecursionError):
        same = False
    if not same:
        raise IntegrityError(
            f"got another {KEY} in the bucket than that of {key.kind} {key.short}, expected its own",
            reason="hash-mismatch",
            hint="something else than warmer writes there; use another prefix",
        )
