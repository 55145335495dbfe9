"""Bring kernels from the volume to the bucket: blobs first, the seal last, nothing ever replaced.

Shared kinds only grow, as on a volume: what is put has every file of the newest that is there, and
where the newest has every file of a piece, that one stands for it. Of two that each have what the
other lacks, both together are put (`join`). The volume stays as it is: who pulls has both.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from warmer import ranks, regular, seal
from warmer.errors import IntegrityError, SourceError, VolumeError, using
from warmer.fill import archive, capacity, members, restore, stagings
from warmer.fill.remote import catalogue, join, retired
from warmer.layout import KEY
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
"""Numbers or stagings lost to others before the push gives up."""


class _Offer(NamedTuple):
    """What is to be put.

    Attributes:
        record: its seal, with this volume's number and needs.
        here: path of a sealed file → where it lies; the others are in the bucket.
    """

    record: seal.Seal
    here: Mapping[str, str]


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
        here = {file.path: os.path.join(directory, file.path) for file in record.files}
        self._offer(key, _Offer(record, here), needs)

    def _offer(self, key: Key, own: _Offer, needs: Mapping[str, int]) -> None:
        """Put what is here, or what it is together with what is there, under the next number.

        A push holds no lock: nobody shall wait for a bucket. So whoever claims the key meanwhile takes
        the staging for one of the dead and removes it. Then both are joined anew, in another one.
        """
        for left in reversed(range(_RACES)):
            staging = stagings.name(self._volume, key)
            try:
                if self._try(key, own, needs, staging):
                    return
            except VolumeError as exc:
                if not left or exc.reason not in stagings.VANISHED or not _is_there(own):
                    raise
                _log.info("joining again: another owner cleared the staging away", kind=key.kind)
            finally:
                stagings.discard(staging)
        raise SourceError(
            f"got no number for {key.kind} {key.short} in {self._bucket.url}, expected a free one",
            reason="overtaken",
            hint="others push the same piece; theirs is as good",
        )

    def _try(
        self, key: Key, own: _Offer, needs: Mapping[str, int], staging: stagings.Staging
    ) -> bool:
        """Put it once; False where another one got the number."""
        there = self._bucket.numbers(key)
        newest = next(catalogue.acceptable(self._bucket, key, there, self._trust), None)
        same = (
            newest is not None
            and newest.seal.files == own.record.files
            and not self._stranded(newest)
        )
        offer: _Offer | None = own
        if newest is not None and not same:
            offer = self._beside(newest, key, own, staging)
        if offer is None:
            return True
        self._put_blobs(key, offer)  # where it is the same, some may have expired
        if newest is not None and same:
            self._numbers[key.kind] = newest.number
            return True
        number = max(there, default=0) + 1
        if not self._put_seal(key, offer.record, number, needs):
            return False
        self._numbers[key.kind] = number
        joined = offer is not own
        _log.info("pushed", kind=key.kind, key=key.short, number=number, joined=joined)
        return True

    def _needs(self, record: seal.Seal) -> Mapping[str, int] | None:
        """Say which numbers of the bucket a piece is built beside; None where one is not there."""
        missing = sorted(record.needs.keys() - self._numbers.keys())
        if missing:
            _log.info("not pushed: what it was built beside is not there", needs=missing)
            return None
        return {kind: self._numbers[kind] for kind in record.needs}

    def _beside(  # noqa: PLR0911 - a return per case
        self, newest: Found, key: Key, own: _Offer, staging: stagings.Staging
    ) -> _Offer | None:
        """Say what to put where something is there; None where that stands for what is here."""
        there = all(self._bucket.has(file) for file in newest.seal.files)
        if not there or retired.here(self._volume, newest.seal):
            return own
        try:
            if key.kind == "compile":
                if self._useless(newest, key):
                    return own
                self._numbers[key.kind] = newest.number  # another was faster: as good
                return None
            theirs = catalogue.manifest(self._bucket, newest)
        except (IntegrityError, SourceError) as exc:
            if isinstance(exc, SourceError) and exc.reason != "not-found":
                raise
            _log.warning("a piece in the bucket is of no use", kind=key.kind, failure=exc.message)
            return own
        generation = own.record.generation
        mine, _ = restore.read_manifest(self._volume, key, generation, trust=self._trust)
        standing = join.standing(mine.members.keys(), theirs.members.keys())
        if standing == "covered":
            self._numbers[key.kind] = newest.number
            return None
        if standing == "grown":
            return own
        both = None
        if not self._trust.forbids_publishing:  # nobody who trusts as this pod does would pull it
            both = self._join(mine, theirs, newest, own, staging)
        if both is None:
            _log.info(
                "not pushed: the bucket has what is not here, and both cannot be one",
                kind=key.kind,
                number=newest.number,
            )
        return both

    def _useless(self, newest: Found, key: Key) -> bool:
        """Whether whoever pulls a compiled piece would leave it, and build it as was done here."""
        world = ranks.world(key.factors)
        return self._stranded(newest) or (
            world.several and bool(ranks.lacking(catalogue.paths(self._bucket, newest), world))
        )

    def _stranded(self, newest: Found) -> bool:
        """Whether a piece needs numbers that are not there: seals expire, and count from 1 anew."""
        there = self._numbers
        return any(number > there.get(kind, number) for kind, number in newest.seal.needs.items())

    def _join(
        self,
        mine: members.Manifest,
        theirs: members.Manifest,
        newest: Found,
        own: _Offer,
        staging: stagings.Staging,
    ) -> _Offer | None:
        """Make what is here and what is there one piece, in the staging directory."""
        record = own.record
        stagings.make(staging)
        capacity.require(staging.path, record.size)
        archives = [own.here[file.path] for file in record.files if archive.is_one(file.path)]
        made = join.join(mine, archives, theirs, newest.seal.files, staging.path)
        if made is None:
            return None
        there = {file.path for file in newest.seal.files if archive.is_one(file.path)}
        here = {
            file.path: os.path.join(staging.path, file.path)
            for file in made
            if file.path not in there
        }
        key_file = next(file for file in record.files if file.path == KEY)
        record = dataclasses.replace(record, files=tuple(sorted([*made, key_file])))
        signatures = self._trust.sign(seal.statement(record))
        record = dataclasses.replace(record, signatures=signatures)
        return _Offer(record, here | {KEY: own.here[KEY]})

    def _put_blobs(self, key: Key, offer: _Offer) -> None:
        for file in offer.record.files:
            if (path := offer.here.get(file.path)) is None:
                continue
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


def _is_there(own: _Offer) -> bool:
    """Whether all that is sealed here is still here: then it was not that which vanished."""
    return all(os.path.lexists(path) for path in own.here.values())
