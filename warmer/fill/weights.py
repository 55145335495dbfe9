"""Fill the weights piece: take over what is there, fetch what is missing, verify, publish.

Every file is hashed and compared with what the source says before it counts as finished.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from warmer.errors import IntegrityError, UsageError, VolumeError, using
from warmer.fill import adopt, capacity, partial, publish, stagings, takeover
from warmer.fill.digests import provable
from warmer.fill.workers import Workers
from warmer.layout import FILES
from warmer.seal import safe_path
from warmer.selection import choose, loadable
from warmer.trust import ANYBODY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from warmer.fill.locks import Grant
    from warmer.fill.progress import Meter
    from warmer.fill.sources import Source, SourceFile
    from warmer.layout import Volume
    from warmer.model import Held, Key, ModelRef
    from warmer.selection import Selection
    from warmer.settings import Writing

ALONE: Final = Workers()
_CONNECTIONS: Final = 8
"""Of one process: what hubs and buckets bear from every pod; four are as fast nearby."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a model at one revision.

    Attributes:
        files: those that make up the piece.
        left_out: path → reason, for the others.
        saved: bytes of the others.
    """

    files: tuple[SourceFile, ...]
    left_out: Mapping[str, str]
    saved: int


@dataclass(frozen=True, slots=True)
class Filled:
    """What a fill did.

    Attributes:
        generation: its number.
        fetched: bytes that came from the source.
        taken_over: bytes that were there: of earlier owners, broken generations, other caches.
    """

    generation: int
    fetched: int
    taken_over: int


def fill(
    volume: Volume,
    key: Key,
    *,
    model: ModelRef,
    source: Source,
    wanted: Sequence[SourceFile],
    held: Held,
    after: int,
    grant: Grant,
    meter: Meter,
    places: Sequence[str],
    writing: Writing,
    workers: Workers = ALONE,
) -> Filled:
    """Fill the weights of one model under its grant.

    Args:
        volume: where to.
        key: the piece.
        model: the resolved revision.
        source: where from.
        wanted: the files that make up the piece.
        held: what the volume holds now; good files of a broken generation are taken over.
        after: the highest number taken before that was looked at: who publishes since has won.
        grant: the lock on the key.
        meter: told what arrives.
        places: Hugging Face caches and folders to look into before anything is fetched.
        writing: how files are written.
        workers: the processes that may share in it.

    Raises:
        SourceError: the source failed; what arrived is kept for the next try.
        IntegrityError: bytes are not what the source says; the files that are right are kept.
        VolumeError: the volume failed, or is too small for the whole model.
        BusyError: the grant or the race was lost; nothing was published.
    """
    started = time.monotonic()
    old = stagings.abandoned(volume, key, grant)
    _refuse_paths(wanted)
    staging = stagings.name(volume, key)

    def worth_keeping() -> bool:
        return any(map(_may_be_proved, wanted)) and partial.resumable(staging.path)

    with stagings.staged(staging, grant, worth_keeping=worth_keeping):
        stagings.make(staging)
        broken = _generations(volume, key, held)
        finders = [adopt.finder(place, model) for place in places]

        def donors(file: SourceFile) -> Iterator[adopt.Donor]:
            for left in (*old, *broken):
                path = os.path.join(left, FILES, file.path)
                if not takeover.led_away(volume.root, path):
                    yield path, True
            for find in finders:
                yield from find(file)

        if old or broken or finders:
            grant.note("verifying what is there")
            wanted = takeover.described(wanted, source, model, donors, old)
        room = sum(f.size for f in wanted if not adopt.near(donors(f), f, staging.path))
        parts = (partial.total(partial.spans(left, f)) for f in wanted for left in old)
        capacity.require(staging.path, max(0, room - sum(parts)))
        done = takeover.take_over(wanted, donors, staging.path)
        missing = [file for file in wanted if file.path not in done]
        present = takeover.take_over_parts(missing, old, staging.path, root=volume.root)
        # Now: who is killed after publishing leaves a key that nobody claims again.
        for path in old:
            stagings.discard(stagings.Staging(path, key, ""))
        coming = {f.path: f.size - partial.total(present.get(f.path, ())) for f in missing}
        need = sum(coming.values())
        capacity.require(staging.path, need)
        told = _Told(need, grant, meter)
        with meter.running(coming), _shortfall(volume, told):
            done |= workers.run(
                source,
                model,
                missing,
                present,
                staging=staging.path,
                moved=told,
                writing=writing,
                connections=_CONNECTIONS,
            )
        source.files(model)  # a directory must still be what it was when the copy began
        grant.note("publishing")
        _clear(staging.path)
        number = publish.publish(
            volume,
            staging,
            files=done.values(),
            grant=grant,
            after=after,
            source=str(model),
            seconds=time.monotonic() - started,
            trust=ANYBODY,  # weights are what the source says, whoever fetched them
        )
    size = sum(file.size for file in wanted)
    return Filled(number, told.done, max(0, size - told.done))


def listing(source: Source, model: ModelRef, selection: Selection) -> Listing:
    """Ask which files a model has, and choose those that are wanted.

    Raises:
        SourceError: the source does not say.
        UsageError: nothing that an engine could load is wanted.
    """
    files = source.files(model)
    reasons = choose([file.path for file in files], selection)
    kept = tuple(file for file in files if file.path not in reasons)
    had, have = ([f for f in some if loadable(f.path)] for some in (files, kept))
    if not kept or (had and not have):
        raise UsageError(
            f"got no weights of {model} after --include and --exclude, expected some",
            reason="nothing-selected",
            hint="patterns match whole paths, as *.safetensors or original/*",
        )
    saved = sum(file.size for file in files if file.path in reasons)
    return Listing(kept, reasons, saved)


def missing_bytes(
    volume: Volume,
    key: Key,
    wanted: Iterable[SourceFile],
    held: Held,
    *,
    model: ModelRef,
    places: Sequence[str],
) -> int:
    """Count the bytes a fill would fetch: all, less what is there and can be proved.

    Files are taken at their sizes; the fill itself hashes them.
    """
    broken = _generations(volume, key, held)
    finders = [adopt.finder(place, model) for place in places]

    def there(file: SourceFile) -> bool:
        paths = [os.path.join(left, FILES, file.path) for left in broken]
        paths += [path for find in finders for path, _ in find(file)]
        return _may_be_proved(file) and any(adopt.sized(path, file) for path in paths)

    return sum(file.size for file in wanted if not there(file))


def _generations(volume: Volume, key: Key, held: Held) -> list[str]:
    return [volume.generation(key.kind, key.digest, held.generation)] if held.generation else []


def _may_be_proved(file: SourceFile) -> bool:
    """Whether the listing vouches for a file's bytes, or a question about it may."""
    return provable(file.digests) or bool(file.version)


class _Told:
    """Adds up what arrives, and tells the meter and those who wait for the lock."""

    def __init__(self, total: int, grant: Grant, meter: Meter) -> None:
        self._total = total
        self._grant = grant
        self._meter = meter
        self.done = 0
        self._mutex = threading.Lock()

    def __call__(self, path: str, count: int) -> None:
        with self._mutex:
            self.done += count
            done = self.done
        self._grant.note("downloading", done, self._total)
        self._meter.moved(path, count)

    @property
    def left(self) -> int:
        """Bytes still to come."""
        return max(0, self._total - self.done)


@contextlib.contextmanager
def _shortfall(volume: Volume, told: _Told) -> Iterator[None]:
    """Say how many bytes are too few where the room runs out midway."""
    try:
        yield
    except VolumeError as exc:
        if exc.reason != "no-space":
            raise
        with using("the volume"):
            left = capacity.free(volume.root)
        raise capacity.too_small(max(told.left, left + 1), left) from exc


def _refuse_paths(files: Sequence[SourceFile]) -> None:
    paths = [file.path for file in files]
    counts = Counter(paths)
    parents = {parent for path in paths for parent in _parents(path)}
    for path in paths:
        if not safe_path(path) or path in parents or counts[path] > 1:
            raise IntegrityError(
                f"got the path {path!r} from the source, expected a file inside the model that "
                "is listed once",
                reason="unsafe-path",
                hint="look at the repository; its listing is not a model's",
            )


def _parents(path: str) -> list[str]:
    words = path.split("/")
    return ["/".join(words[:count]) for count in range(1, len(words))]


def _clear(staging: str) -> None:
    """Remove what is no file of the piece."""
    for name in (partial.PARTIAL, takeover.ADOPTED):
        with using("the volume"), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(os.path.join(staging, name))
