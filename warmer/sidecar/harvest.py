"""What a running server built → generations, without touching its trees.

The trees are copied first (`copies`), into a warm dir within the warm dir, and the live ones are
looked at again. From there on a harvest is published like a build: cleaned of secrets, staged,
sealed, under the key's lock, by the one door.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from warmer import ranks, regular
from warmer.errors import VolumeError, using
from warmer.fill import answer, capacity, restore, stagings, trees
from warmer.layout import SEAL, WarmDir
from warmer.observe import inventory, numbers
from warmer.seal import LONGEST
from warmer.sidecar import copies

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from warmer.fill.claim import Claims
    from warmer.layout import Volume
    from warmer.model import Held, Kind
    from warmer.sidecar.copies import Trees
    from warmer.sidecar.handed import Job, Piece
    from warmer.trust import Trust

_log = structlog.get_logger(__name__)
_SHARED: Final[tuple[Kind, ...]] = ("flashinfer", "jit")


@dataclass(frozen=True, slots=True)
class Harvest:
    """Takes what one server's trees give.

    Attributes:
        volume: where to.
        warm: the server's warm dir.
        job: its keys.
        trust: as whom pieces are signed, and whose are merged with.
        secrets: name → value: what must not be in a file that is published.
        wait: seconds to wait for another owner of a key.
        alive: called between two steps.
        done: kind → the generation that was published so far.
    """

    volume: Volume
    warm: WarmDir
    job: Job
    trust: Trust
    secrets: Mapping[str, str] = field(repr=False)
    wait: float
    alive: Callable[[], None]
    done: dict[Kind, int] = field(init=False, default_factory=dict)

    def take(self, seen: Trees, claims: Claims) -> None:
        """Publish what the trees hold that the volume has not.

        Args:
            seen: the trees as they have been for a while.
            claims: on the keys' locks.

        Raises:
            ChangedError: a tree is not what was seen.
            VolumeError: the volume or the warm dir failed, or it is another volume.
            IntegrityError: what is published already is corrupt.
            BusyError: another owner is at work, or a grant or a race was lost.
            LockError: the lock's service failed or refused.
        """
        job = self.job
        for kind, piece in job.handed.items():
            self._require(kind, piece)
        held = self.held()
        if any(held[kind].crashed and kind in job.handed for kind in job.keys):
            return  # the trees may hold what crashed an engine
        wanted = [kind for kind in (*_SHARED, "compile") if self._adds(kind, held, seen)]
        compiled = [path for kind, path in seen if kind == "compile"]
        if "compile" in wanted and (missing := ranks.lacking(compiled, self._world)):
            _log.warning("compiled code is not there of every rank", missing=ranks.named(missing))
            wanted.remove("compile")
        if not wanted:
            return
        private = WarmDir(self.warm.harvest)
        try:
            copies.sweep(self.warm)
            self._copy(wanted, seen, private)
            kept = self._kept(wanted, private)
            wanted = [kind for kind in wanted if self._adds(kind, held, kept)]
            needs: dict[str, int] = {}
            for kind in (kind for kind in _SHARED if kind in job.keys):
                needs[kind] = held[kind].generation
                if kind in wanted:
                    needs[kind] = self._share(kind, private, claims)
                    if needs[kind] > held[kind].generation:
                        self.done[kind] = needs[kind]
            if "compile" in wanted:
                base = held["compile"].generation if held["compile"].verdict == "sealed" else 0
                if number := self._compile(private, base, needs, claims):
                    self.done["compile"] = number
        finally:
            copies.sweep(self.warm)

    def held(self) -> Mapping[Kind, Held]:
        """Look at what the volume holds.

        Raises:
            VolumeError: the volume failed.
        """
        look = inventory.observe(
            self.volume, self.warm, self.job.keys, trust=self.trust, neighbours=False
        )
        return look.held

    @property
    def _world(self) -> ranks.World:
        """The ranks of the server's engine."""
        key = self.job.keys.get("compile")
        return ranks.world(key.factors if key else {})

    def _require(self, kind: Kind, piece: Piece) -> None:
        """Insist that the volume has what this pod was handed, or it is another one.

        Kernels that are there no more crashed an engine, or were corrupt: what a server has built
        beside them is of no use to others.
        """
        place = self.volume.generation(kind, piece.digest, piece.generation)
        found = ""
        with using("the volume"):
            try:
                data = regular.read(os.path.join(place, SEAL), most=LONGEST)
                found = hashlib.sha256(data).hexdigest()
            except (FileNotFoundError, NotADirectoryError, regular.OddFileError):
                pass
        if found != piece.seal_sha256:
            raise VolumeError(
                f"got no {place} as it was handed to this pod, expected it",
                reason="missing",
                hint="mount the volume that prefill filled, or name it with --volume",
            )

    def _adds(self, kind: Kind, held: Mapping[Kind, Held], seen: Trees) -> bool:
        """Whether a tree has a file that the newest generation of its key has not."""
        if kind not in self.job.keys:
            return False
        if held[kind].verdict != "sealed":  # a server that is ready without any needs none
            return True
        noted = {answer.NAME}  # by a build run alone
        ours = {path for k, path in seen if k == kind} - noted
        key, number = self.job.keys[kind], held[kind].generation
        manifest, _ = restore.read_manifest(self.volume, key, number, trust=self.trust)
        theirs = manifest.members.keys() - noted
        # Another pod's stands, unless all of it is here too; the next start will try it.
        if kind == "compile" and not theirs <= ours:
            return False
        return bool(ours - theirs)

    def _copy(self, kinds: list[Kind], seen: Trees, private: WarmDir) -> None:
        """Copy trees, and insist that they are still what was seen."""
        # What is shared is merged there with as much again.
        need = sum(
            state.size * (1 + (kind in _SHARED))
            for (kind, _), state in seen.items()
            if kind in kinds
        )
        with using("the warm dir"):
            left = capacity.free(self.warm.root)
            if need + capacity.RESERVE > left:
                raise VolumeError(
                    f"got {left} bytes free in the warm dir, expected {need + capacity.RESERVE} for "
                    "a copy of the caches",
                    reason="no-space",
                    hint="give the warm dir twice the room of the caches",
                )
            os.mkdir(private.root, 0o700)
            try:
                for kind in kinds:
                    copies.copy(self.warm.tree(kind), private.tree(kind), kind, seen)
                    self.alive()
            except FileNotFoundError as exc:
                raise copies.ChangedError(f"{exc.filename} is gone") from exc
            if copies.look(self.warm, self.job.keys) != seen:
                raise copies.ChangedError("a file was written meanwhile")

    def _kept(self, kinds: list[Kind], private: WarmDir) -> Trees:
        """What is left of the copies without files that hold secrets, which are not published."""
        for kind in kinds:
            trees.clean(private, self.job.keys[kind], self.secrets)
        with using("the warm dir"):
            return copies.look(private, self.job.keys)

    def _share(self, kind: Kind, private: WarmDir, claims: Claims) -> int:
        self.alive()
        return trees.publish_shared(
            self.volume,
            private,
            self.job.keys[kind],
            claims=claims,
            wait=self.wait,
            seconds=0.0,  # what building took is not known
            trust=self.trust,
            secrets=self.secrets,
            source=self.job.source,
            world=self._world,
        )

    def _compile(
        self, private: WarmDir, base: int, needs: Mapping[str, int], claims: Claims
    ) -> int:
        """Publish the compile tree on top of a generation; 0 where another pod was faster."""
        key = self.job.keys["compile"]
        self.alive()

        def theirs() -> bool:
            held = self.held()["compile"]
            return held.verdict == "sealed" and held.generation != base

        with claims.claim(key, wait=self.wait, filled=theirs) as grant:
            if grant is None:
                return 0
            with using("the volume"):
                after = numbers.highest_taken(self.volume, key.kind, key.digest)
            if theirs():  # looked at after the number: who publishes since has won
                return 0
            stagings.sweep(self.volume, key, grant)
            return trees.publish_tree(
                self.volume,
                private,
                key,
                grant=grant,
                after=after,
                seconds=0.0,
                needs=needs,
                trust=self.trust,
                secrets=self.secrets,
                source=self.job.source,
            )
