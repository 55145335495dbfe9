"""What the volume and the warm dir hold, judged piece by piece. Reads only.

Every look lists directories as the server has them now (`warmer.observe.numbers`).
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import stat
import statistics
from typing import TYPE_CHECKING, Any, Final

from warmer import keys, regular, seal
from warmer.errors import IntegrityError, VolumeError, using
from warmer.layout import KEY, SEAL, Volume, WarmDir
from warmer.model import KERNEL_KINDS, Held, Inventory, Key, Kind, Nearest, too_deep
from warmer.observe import numbers, presence
from warmer.observe.crashes import Crashes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from warmer.trust import Trust

_UNREADABLE: Final = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
_NONE: Final = Held("absent", "")
_LOOKS: Final = 3
"""Looks at names that NFS calls stale: each reopens the directory, which fetches them anew."""
_NEIGHBOURS: Final = 64
"""Keys of one kind read to find the nearest and to predict: enough for people, bounded on NFS."""


def require(volume: Volume) -> None:
    """Insist that the volume is there.

    Raises:
        VolumeError: it is not, or it is no directory.
    """
    if not os.path.isdir(volume.root):
        raise VolumeError(
            f"got no directory at {volume.root}, expected the mounted volume",
            reason="missing",
            hint="mount the volume there, or name it with --volume",
        )


def observe(
    volume: Volume,
    warm: WarmDir,
    wanted: Mapping[Kind, Key],
    *,
    trust: Trust,
    neighbours: bool = True,
) -> Inventory:
    """Judge every wanted piece.

    Args:
        volume: where to look.
        warm: for what is restored.
        wanted: the keys.
        trust: whose kernels count.
        neighbours: whether to read other keys too, for explanations and predictions; waiters
            that look again and again do not.

    Raises:
        VolumeError: the volume cannot be read.
    """
    with using("the volume"):
        held = _judge_all(volume, warm, wanted, trust)
        nearest: dict[Kind, Nearest] = {}
        rates: dict[Kind, float] = {}
        for kind, key in wanted.items():
            if held[kind].verdict == "sealed" or not neighbours:
                continue
            others = dict(_neighbours(volume, key))
            found = keys.nearest(key, others.items())
            if found is not None:
                nearest[kind] = found
            rate = _rate(volume, kind, [key.digest, *others], trust)
            if rate is not None:
                rates[kind] = rate
    restored = {k: _restored(warm, wanted[k], h) for k, h in held.items() if k in KERNEL_KINDS}
    held |= {k: dataclasses.replace(held[k], restored=True) for k, yes in restored.items() if yes}
    if held.get("compile", _NONE).verdict == "sealed":
        held["compile"] = presence.judge(volume, warm, wanted["compile"], held["compile"])
    return Inventory(held, nearest, rates)


def _judge_all(
    volume: Volume, warm: WarmDir, wanted: Mapping[Kind, Key], trust: Trust
) -> dict[Kind, Held]:
    """Judge every piece; a name that goes stale while it is looked at is looked at anew."""
    for left in reversed(range(_LOOKS)):
        seals: dict[Kind, seal.Seal] = {}
        told = Crashes(volume, warm)
        try:
            held = {kind: _judge(volume, key, trust, seals, told) for kind, key in wanted.items()}
        except OSError as exc:
            if exc.errno != errno.ESTALE or not left:
                raise
            continue
        return held | _stale(held, seals)
    raise AssertionError("the last look raises or returns")


def read_seal(directory: str) -> tuple[seal.Seal, bytes]:
    """Read the seal of a published or staged generation.

    Raises:
        FileNotFoundError: there is none.
        IntegrityError: it is malformed, or no file that a seal could be.
        ForeignSealError: it is of another format.
    """
    path = os.path.join(directory, SEAL)
    try:
        data = regular.read(path, most=seal.LONGEST)
    except regular.OddFileError as exc:
        raise IntegrityError(
            f"got {path}, which {exc}, expected a seal",
            reason="malformed-seal",
            hint="something else writes on the volume; run `warmer prefill` again",
        ) from exc
    return seal.parse(data, where=path), data


def judge_generation(  # noqa: PLR0911 - one return per verdict reads best
    volume: Volume, key: Key, number: int, *, trust: Trust
) -> tuple[Held, seal.Seal | None]:
    """Judge one published generation by its seal, who signed it, and the sizes of its files."""
    directory = volume.generation(key.kind, key.digest, number)
    try:
        record, data = read_seal(directory)
    except FileNotFoundError:
        return Held("partial", f"generation {number} has lost its seal", number), None
    except IntegrityError as exc:
        return Held("corrupt", exc.message, number), None
    except seal.ForeignSealError as exc:
        return Held("foreign", f"generation {number} has another format: {exc}", number), None
    except (NotADirectoryError, IsADirectoryError) as exc:
        return Held("foreign", f"generation {number} is not warmer's: {exc.strerror}", number), None
    except OSError as exc:
        if key.kind == "weights":
            raise
        # Kernels that cannot be read are kernels that are missing, not a reason not to start.
        return Held("corrupt", f"generation {number} cannot be read: {exc.strerror}", number), None
    if why := objection(record, key, number, trust):
        return Held("foreign", f"generation {number} {why}", number), None
    missing, wrong = _broken(directory, record)
    common: dict[str, Any] = {
        "generation": number,
        "size": record.size,
        "broken": (*missing, *wrong),
        "seal_sha256": hashlib.sha256(data).hexdigest(),
        "source": record.source,
    }
    if wrong:
        path, why = next(iter(wrong.items()))
        return Held("corrupt", f"{path} {why}", **common), record
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        return Held("partial", f"gone: {missing[0]}{more}", **common), record
    return Held("sealed", f"generation {number}", **common), record


def objection(record: seal.Seal, key: Key, number: int, trust: Trust) -> str:
    """Say why a seal does not speak for a generation, or is not to be believed; empty if it does."""
    if (record.kind, record.key, record.generation) != (key.kind, key.digest, number):
        return "carries the seal of another piece"
    if key.kind not in KERNEL_KINDS:
        return ""
    why = trust.objection(seal.statement(record), record.signatures)
    return f"is not trusted: {why}" if why else ""


def _judge(
    volume: Volume, key: Key, trust: Trust, seals: dict[Kind, seal.Seal], told: Crashes
) -> Held:
    there = numbers.generations(volume, key.kind, key.digest)
    if not there:
        return Held("absent", "nothing is published under this key")
    worst: Held | None = None
    for number in there:
        held, record = judge_generation(volume, key, number, trust=trust)
        if held.verdict == "sealed" and record is not None:
            if number <= (last := told.last(key, there)):
                reason = f"generation {last} crashed the engine at load twice"
                return dataclasses.replace(held, verdict="stale", reason=reason, crashed=True)
            seals[key.kind] = record
            return held
        worst = worst or held
    return worst or Held("absent", "")


def _stale(held: Mapping[Kind, Held], seals: Mapping[Kind, seal.Seal]) -> dict[Kind, Held]:
    """Find sealed pieces built beside a generation of another piece that is no longer there."""
    found: dict[Kind, Held] = {}
    for kind, record in seals.items():
        for other in KERNEL_KINDS:
            if other == kind:  # it is beside itself
                continue
            need = record.needs.get(other, 0)
            if other in held and held[other].verdict == "sealed" and held[other].generation < need:
                reason = (
                    f"built beside {other} generation {need}; {held[other].generation} is there"
                )
                found[kind] = dataclasses.replace(held[kind], verdict="stale", reason=reason)
    return found


def _broken(directory: str, record: seal.Seal) -> tuple[list[str], dict[str, str]]:
    """Find the files that are missing, and those that cannot be the sealed ones, with the reason."""
    missing: list[str] = []
    wrong: dict[str, str] = {}
    for file in record.files:
        try:
            info = os.lstat(os.path.join(directory, file.path))
        except OSError as exc:
            if exc.errno in _UNREADABLE and record.kind == "weights":
                raise
            missing.append(file.path)
            continue
        if not stat.S_ISREG(info.st_mode):
            wrong[file.path] = "is no regular file"
        elif info.st_size != file.size:
            wrong[file.path] = "has not the size its seal says"
    return missing, wrong


def _neighbours(volume: Volume, key: Key) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        digests = sorted(numbers.listing(volume, volume.kind(key.kind)))
    except FileNotFoundError:
        return
    for digest in digests[:_NEIGHBOURS]:
        there = numbers.generations(volume, key.kind, digest)
        if digest == key.digest or not there:
            continue
        path = os.path.join(volume.generation(key.kind, digest, there[0]), KEY)
        try:
            factors = json.loads(regular.read(path))["factors"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(factors, dict) and not too_deep(factors):
            yield digest, factors


def _rate(volume: Volume, kind: Kind, digests: list[str], trust: Trust) -> float | None:
    """Median of what earlier fills recorded: bytes per second for weights, else seconds.

    Seals that do not speak for their place, or that nobody vouches for who is trusted, say nothing.
    """
    seen: list[float] = []
    for digest in digests[:16]:
        for number in numbers.generations(volume, kind, digest)[:1]:
            try:
                record, _ = read_seal(volume.generation(kind, digest, number))
            except (OSError, IntegrityError, seal.ForeignSealError):
                continue
            if objection(record, Key.known(kind, digest), number, trust):
                continue
            if record.seconds > 0:
                seen.append(record.size / record.seconds if kind == "weights" else record.seconds)
    return statistics.median(seen) if seen else None


def boot() -> str:
    """Name this boot of the node; what was written in another one may not have reached the disk."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
            return f.read().strip()
    except OSError:
        return "unknown"


def _restored(warm: WarmDir, key: Key, held: Held) -> bool:
    try:
        with open(warm.restored(key.kind), "rb") as f:
            record = json.load(f)
        found = [record[name] for name in ("key", "generation", "seal_sha256", "boot")]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    wanted = [key.digest, held.generation, held.seal_sha256, boot()]
    return found == wanted and os.path.isdir(warm.tree(key.kind))
