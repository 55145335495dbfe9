"""What the doctor found, as values, and the exit code they come to. Pure."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from warmer.errors import EXIT_OK, BusyError, LockError, VolumeError, WarmerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from warmer.urls import LockUrl

Verdict = Literal["ok", "warn", "fail", "skip"]
"""ok: as warmer needs it. warn: it works, and costs something. fail: it does not work here.
skip: not looked at."""

Part = Literal["volume", "lock", "partner"]

_CODES: Final[dict[Part, int]] = {
    "volume": VolumeError.exit_code,
    "lock": LockError.exit_code,
    "partner": BusyError.exit_code,
}
"""Part → the exit code of its failure; of several, the first counts."""


_FEW: Final = 20
ONE_CLIENT: Final = (
    "NFS nodes of one hostname are one client to the server, and take each other's locks away: "
    "name them apart, or give each an nfs.nfs4_unique_id"
)
NOT_ATOMIC: Final = "publishing rests on it: fill a volume on NFS, Lustre, CephFS or a disk"
NO_REPLACE: Final = "two owners could publish one piece: do not fill it"
WHO_KNOWS: Final = "look at the storage server, and at the node's kernel log"
NOT_AS_TAKEN: Final = (
    "ENOTEMPTY was expected: a race between two owners would read as a failed volume"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the table.

    Attributes:
        name: what was tried.
        verdict: what came of it.
        found: what was seen, with figures and their units.
        hint: what it means and what to do; empty where all is well.
        part: whose fault a failure is: the volume's, the lock service's, or the other pod's.
    """

    name: str
    verdict: Verdict
    found: str
    hint: str = ""
    part: Part = "volume"


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 0 where nothing failed; warnings do not fail a run."""
    failed = {finding.part for finding in findings if finding.verdict == "fail"}
    return next((code for part, code in _CODES.items() if part in failed), EXIT_OK)


def of_error(name: str, exc: WarmerError, *, part: Part = "volume") -> Finding:
    """Make the failure out of an error of the tree."""
    return Finding(name, "fail", exc.message, exc.hint or WHO_KNOWS, part)


def of_reader(name: str, seen: Mapping[str, int]) -> Finding:
    """Judge what `warmer.doctor.watching.file` saw of a file while it was replaced."""
    absent, torn, looks = (seen[what] for what in ("absent", "torn", "looks"))
    found = f"replaced under a reader: in {looks} looks absent {absent} times, torn {torn} times"
    if torn:
        return Finding(name, "fail", found, NOT_ATOMIC)
    if absent:
        hint = "publishing renames directories, which no reader misses; locks and hints are files"
        return Finding(name, "warn", found, hint)
    if looks < _FEW:
        return Finding(name, "warn", found, "too few looks to tell: run it again")
    return Finding(name, "ok", found)


def instead_of_file_locks(url: LockUrl) -> str:
    """Say what it means that file locks do not exclude here, given the lock asked for."""
    if url.mechanism == "file":
        return (
            "with --lock file pods would do work twice (warmer uses tickets where the mount says "
            "so); use --lock k8s://namespace/prefix or s3://bucket/prefix"
        )
    return f"--lock {url.mechanism}:// does without them; do not use --lock file here"


def name_errno(exc: OSError) -> str:
    """Name an operating-system error as its manual page does, such as ``ENOTEMPTY``."""
    return errno.errorcode.get(exc.errno or 0, str(exc))


def count_bytes(count: float) -> str:
    """Write a number of bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
