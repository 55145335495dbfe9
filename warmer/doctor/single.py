"""What one pod can find out alone: a process, its child, and the mount they share.

Every check tries the thing itself in the doctor's private directory, and cleans nothing up: the
directory goes as a whole.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from warmer.doctor import locking, place, renames
from warmer.doctor.findings import (
    NOT_ATOMIC,
    WHO_KNOWS,
    Finding,
    Verdict,
    count_bytes,
    instead_of_file_locks,
    name_errno,
    of_error,
)
from warmer.errors import VolumeError, using
from warmer.observe import mount as mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from warmer.layout import Volume
    from warmer.observe.mount import Mount
    from warmer.urls import LockUrl

_FEW_BYTES: Final = 1e9
_FEW_INODES: Final = 1000
_WHEN: Final = 1_700_000_000_123_456_789
"""A modification time, ns since 1970, whose every decimal tells."""

_STEPS: Final = (
    (100, "100 ns"),
    (1_000, "1 µs"),
    (10**6, "1 ms"),
    (10**9, "1 s"),
    (2 * 10**9, "2 s"),
)
_SHOWN: Final = 4
_STATUS: Final = 7
"""What the script that is run exits with."""

_DOWNLOADS: Final = "warmer does without, and fetches again what it could have linked"


@dataclass(frozen=True, slots=True)
class _Check:
    """One thing to try: its name, the trial, and what its failure comes to."""

    name: str
    run: Callable[[str, str], Finding]
    failed: Verdict = "fail"
    meaning: str = ""


def look(volume: Volume, mount: Mount, url: LockUrl) -> Iterator[Finding]:
    """Say what can be said without writing, the volume untouched as long as possible.

    Raises:
        VolumeError: the volume does not even say how full it is.
    """
    yield _mount(mount)
    yield _between_nodes(mount, url)
    yield _free(volume.root)


def trials(mount: Mount, url: LockUrl) -> list[Callable[[str], Finding]]:
    """List what can be tried in a private directory, given its path; no trial raises."""
    checks = [
        _Check("fsync", _fsync),
        _Check("publishing", renames.publishing, meaning=NOT_ATOMIC),
        _Check("no replacing", renames.no_replacing, meaning=NOT_ATOMIC),
        _Check("file rename", renames.replacing_a_file, meaning=NOT_ATOMIC),
        _Check("locks", lambda name, path: locking.file_locks(name, path, mount, url)),
        _Check("mtime", _mtime, "warn", "ninja and Triton build again what looks changed"),
        _Check("symlinks", _symlink, "warn", "warmer makes none on a volume"),
        _Check("hard links", _hard_link, "warn", _DOWNLOADS),
        _Check("exec", _exec, "warn", "warmer runs nothing from a volume; a warm dir needs it"),
    ]
    return [_never_raising(check) for check in checks]


def writable() -> Finding:
    """Say that the private directory could be made."""
    return Finding("writable", "ok", f"by user {os.geteuid()}, group {os.getegid()}")


def unwritable(exc: VolumeError) -> list[Finding]:
    """Say that nothing could be tried."""
    return [of_error("writable", exc), Finding("trials", "skip", "nothing can be tried")]


def leftovers(volume: Volume, names: set[str], *, newer: str) -> Finding | None:
    """Remove what killed doctors left, and tell of doctors' directories that stay.

    Args:
        volume: where.
        names: the directories that were there before, and are no partner's.
        newer: a directory made just now, to tell the age of others by one clock.

    Returns:
        None where nothing was there.
    """
    name = "leftovers"
    try:
        gone = place.remove_old(volume, names, newer=newer)
        left = sorted(names & place.others(volume))
    except VolumeError as exc:
        return of_error(name, exc)
    if left:
        found = f"{len(left)} in {volume.doctor}: {', '.join(left[:_SHOWN])}"
        hint = (
            "of doctors that run, or were killed: a doctor removes what is an hour old and its to "
            f"remove; or, when no other doctor runs: rm -r {volume.doctor}"
        )
        return Finding(name, "warn", found, hint)
    return Finding(name, "ok", f"removed {gone} that killed doctors left") if gone else None


def _never_raising(check: _Check) -> Callable[[str], Finding]:
    def trial(path: str) -> Finding:
        try:
            with using(place.VOLUME):
                return check.run(check.name, path)
        except VolumeError as exc:
            warned = check.failed == "warn"
            hint = check.meaning if warned else exc.hint or check.meaning or WHO_KNOWS
            return Finding(check.name, check.failed, exc.message, hint)

    return trial


def _mount(mount: Mount) -> Finding:
    found = f"{mount.type} of {mount.source} at {mount.point}"
    try:
        mounts.require_atomic(mount)
    except VolumeError as exc:
        return Finding("mount", "fail", found, exc.hint)
    return Finding("mount", "ok", found)


def _between_nodes(mount: Mount, url: LockUrl) -> Finding:
    name = "locks by mount"
    if mount.locks == "shared":
        return Finding(name, "ok", mount.reason)
    if mount.locks == "unknown":
        hint = "run `warmer doctor --join` in two pods on two nodes"
        return Finding(name, "warn", mount.reason, hint)
    found = f"{mount.reason}: they exclude no other node"
    return Finding(name, "warn", found, instead_of_file_locks(url))


def _free(root: str) -> Finding:
    with using(place.VOLUME):
        stat = os.statvfs(root)
    free = stat.f_bavail * stat.f_frsize
    found = f"{count_bytes(free)} of {count_bytes(stat.f_blocks * stat.f_frsize)}"
    few = free < _FEW_BYTES
    if stat.f_files:
        found += f", {stat.f_favail} inodes"
        few = few or stat.f_favail < _FEW_INODES
    else:
        found += ", inodes are not counted"
    if few:
        return Finding("free", "warn", found, "a model wants more: free space, or give it more")
    return Finding("free", "ok", found)


def _fsync(name: str, path: str) -> Finding:
    file = os.path.join(path, "flushed")
    place.write(file, b"x" * 4096)
    for what, where in (("a file", file), ("a directory", path)):  # as publishing does, read-only
        descriptor = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as exc:
            found = f"of {what}: {name_errno(exc)}"
            return Finding(name, "fail", found, "nothing can be published that a crash spares")
        finally:
            os.close(descriptor)
    return Finding(name, "ok", "of files and of directories")


def _mtime(name: str, path: str) -> Finding:
    file = os.path.join(path, "dated")
    place.write(file, b"")
    os.utime(file, ns=(_WHEN, _WHEN))
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    kept = os.stat(file).st_mtime_ns
    if kept == _WHEN:
        return Finding(name, "ok", "kept to the nanosecond")
    steps = [text for step, text in _STEPS if kept == _WHEN // step * step]
    found = f"cut to {steps[0]}" if steps else f"off by {abs(_WHEN - kept) / 1e9:.9f} s"
    hint = "ninja and Triton build again what looks changed; warmer's archives keep times itself"
    return Finding(name, "warn", found, hint)


def _symlink(name: str, path: str) -> Finding:
    link = os.path.join(path, "symlink")
    os.symlink("flushed", link)
    if os.readlink(link) != "flushed":
        return Finding(
            name, "warn", f"leads to {os.readlink(link)}", "it was made to lead elsewhere"
        )
    return Finding(name, "ok", "made and read")


def _hard_link(name: str, path: str) -> Finding:
    first, second = os.path.join(path, "flushed"), os.path.join(path, "linked")
    os.link(first, second)
    with open(first, "r+b") as f:
        f.write(b"linked")
    with open(second, "rb") as f:
        same = f.read(6) == b"linked"
    if not same:
        return Finding(name, "warn", "a link is a copy", _DOWNLOADS)
    return Finding(name, "ok", "two names, one file")


def _exec(name: str, path: str) -> Finding:
    script = os.path.join(path, "script")
    place.write(script, f"#!/bin/sh\nexit {_STATUS}\n".encode(), mode=0o777)
    if not os.path.exists("/bin/sh"):
        return Finding(name, "skip", "there is no /bin/sh here to try it with")
    done = subprocess.run([script], stdin=subprocess.DEVNULL, check=False)
    if done.returncode != _STATUS:
        return Finding(name, "warn", f"a script ended with {done.returncode}, expected {_STATUS}")
    return Finding(name, "ok", "a script was run")
