"""Bring kernels from the volume to the bucket: blobs first, the seal last, nothing ever replaced.

Shared kinds only grow, as on a volume: one is put only where it has every file of the newest that
is there, and where the newest has every file of it, that one stands for it. Two that each have
what the other lacks are not merged here: the next pod pulls what is there, and builds upon it.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from typing import TYPE_CHECKING, Final

import structlog

from warmer import regular, seal
from warmer.errors import IntegrityError, SourceError, using
from warmer.fill import restore
from warmer.fill.remote import catalogue, retired
from warmer.observe import inventory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.fill.remote.bucket import Bucket
    from warmer.fill.remote.catalogue import Found
    from warmer.layout import Volume
    from warmer.model import Key, Kind
    from warmer.trust import Trust

_log = structlog.get_logger(__name__)
_RACES: Final = 8
"""Numbers lost to others before the push gives up."""


class Pusher:
    """Pushes the pieces of one pod; those that others need first.

    Args:
        bucket: where to.
        volume: where from.
        trust: whose seals in the bucket count.
    """

    def __init__(self, bucket: Bucket, volume: Volume, trust: Trust) -> None:
        self._bucket = bucket
        self._volume = volume
        self._trust = trust
        self._numbers: dict[str, int] = {}
        self.pushed: dict[Kind, int] = {}
        """Kind → bytes that were put."""

    def push(self, key: Key, generation: int) -> None:
        """Have a sealed generation in the bucket.

        Raises:
            SourceError: the service failed or refused, or others were faster again and again.
            IntegrityError: the generation, or what the bucket has of it, is corrupt.
            VolumeError: the volume failed.
        """
        directory = self._volume.generation(key.kind, key.digest, generation)
        if not restore.intact(self._volume, key, generation):
            raise IntegrityError(
                f"got other bytes in {directory} than its seal says, expected the sealed ones",
                reason="hash-mismatch",
                hint="something else writes on the volume; run `warmer prefill` again",
            )
        with using("the volume"):
            record, _ = inventory.read_seal(directory)
        needs = self._needs(record)
        if needs is None:
            return
        for _ in range(_RACES):
            there = self._bucket.numbers(key)
            newest = next(catalogue.acceptable(self._bucket, key, there, self._trust), None)
            same = newest is not None and newest.seal.files == record.files
            if newest is not None and not same and not self._adds(newest, key, generation):
                return
            self._put_blobs(key, record, directory)  # where it is the same, some may have expired
            if newest is not None and same:
                self._numbers[key.kind] = newest.number
                return
            number = max(there, default=0) + 1
            if self._put_seal(key, record, number, needs):
                self._numbers[key.kind] = number
                _log.info("pushed", kind=key.kind, key=key.short, number=number)
                return
        raise SourceError(
            f"got no number for {key.kind} {key.short} in {self._bucket.url}, expected a free one",
            reason="overtaken",
            hint="others push the same piece; theirs is as good",
        )

    def _needs(self, record: seal.Seal) -> Mapping[str, int] | None:
        """Say which numbers of the bucket a piece is built beside; None where one is not there."""
        missing = sorted(record.needs.keys() - self._numbers.keys())
        if missing:
            _log.info("not pushed: what it was built beside is not there", needs=missing)
            return None
        return {kind: self._numbers[kind] for kind in record.needs}

    def _adds(self, newest: Found, key: Key, generation: int) -> bool:
        """Whether a piece adds to the bucket's newest and leaves nothing out, or that is of no use."""
        there = all(self._bucket.has(file) for file in newest.seal.files)
        if not there or retired.here(self._volume, newest.seal):
            return True
        if key.kind == "compile":  # another was faster, and theirs is as good
            self._numbers[key.kind] = newest.number
            return False
        try:
            theirs = catalogue.paths(self._bucket, newest)
        except (IntegrityError, SourceError) as exc:
            if isinstance(exc, SourceError) and exc.reason != "not-found":
                raise
            _log.warning("a piece in the bucket is of no use", kind=key.kind, failure=exc.message)
            return True
        manifest, _ = restore.read_manifest(self._volume, key, generation, trust=self._trust)
        mine = manifest.members.keys()
        if mine <= theirs:
            self._numbers[key.kind] = newest.number
            return False
        if not theirs <= mine:
            _log.info(
                "not pushed: the bucket has what is not here; who builds next has both",
                kind=key.kind,
                number=newest.number,
            )
            return False
        return True

    def _put_blobs(self, key: Key, record: seal.Seal, directory: str) -> None:
        for file in record.files:
            path = os.path.join(directory, file.path)
            try:
                with using("the volume"):
                    new = self._bucket.put(file, path)
            except regular.OddFileError as exc:
                raise IntegrityError(
                    f"got {path}, which {exc}, expected the sealed file",
                    reason="odd-file",
                    hint="something else writes on the volume; run `warmer prefill` again",
                ) from exc
            if new:
                self.pushed[key.kind] = self.pushed.get(key.kind, 0) + file.size

    def _put_seal(self, key: Key, record: seal.Seal, number: int, needs: Mapping[str, int]) -> bool:
        """Put the seal; where the answer was lost, what is there says whether it is ours."""
        ours = dataclasses.replace(
            record, generation=number, needs=needs, nonce=secrets.token_hex(8)
        )
        data = seal.encode(ours)
        if self._bucket.put_seal(key, number, data):
            return True
        try:
            return self._bucket.seal(key, number, most=len(data)) == data
        except IntegrityError:  # longer: another's
            return False
