"""What the volume's mount can do: do its locks exclude other nodes, is a rename atomic?

Read from ``/proc/self/mountinfo`` (proc(5)) alone; nothing is tried. `warmer doctor` tries.
What each filesystem promises: docs/locks.md, with sources.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import Final, Literal

from warmer.errors import VolumeError, using

Locks = Literal["shared", "node", "none", "unknown"]

_LOCAL: Final = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "ramfs")
_SHARED: Final = ("ceph", "gpfs", "ocfs2", "gfs2", "fuse.glusterfs", "fuse.juicefs")
_OBJECT_STORES: Final = re.compile(
    r"(mountpoint-s3|s3fs|gcsfuse|blobfuse\d?|cloudfuse|goofys|rclone)"
)


@dataclass(frozen=True, slots=True)
class Mount:
    """The filesystem a directory is on.

    Attributes:
        point: where it is mounted.
        type: the kernel's name of it, such as ``nfs4``.
        source: what is mounted, such as ``server:/export``.
        options: all mount options, the filesystem's own included.
        locks: whether kernel locks exclude other nodes (``shared``), only processes of this
            node (``node``), do not work (``none``), or nobody says (``unknown``).
        reason: why, in a few words.
        atomic: whether a directory can be renamed at once, which publishing rests on.
    """

    point: str
    type: str
    source: str
    options: tuple[str, ...]
    locks: Locks
    reason: str
    atomic: bool = True


def find(path: str) -> Mount:
    """Find the mount a directory is on, and judge it.

    Raises:
        VolumeError: the kernel does not tell.
    """
    with using("the list of mounts"), open("/proc/self/mountinfo", "rb") as f:
        text = os.fsdecode(f.read())
    real = os.path.realpath(path)
    return judge(text, real, number=_number(real))


def judge(mountinfo: str, path: str, *, number: str = "") -> Mount:
    """Judge the mount that holds `path`, given the text of ``mountinfo``.

    Args:
        mountinfo: one line per mount.
        path: absolute, without symlinks.
        number: the kernel's number of the mount; without it the path decides, which errs where
            one mount hides another that is further down.

    Raises:
        VolumeError: no mount holds it.
    """
    best: tuple[str, str, str, tuple[str, ...]] | None = None
    for line in mountinfo.splitlines():
        head, dash, tail = line.partition(" - ")
        words, own = head.split(), tail.split(" ")
        if not dash or len(words) < 6 or len(own) < 3:
            continue
        point = _unescape(words[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        known = bool(number) and words[0] == number
        # The later covers the earlier.
        if known or (inside and (best is None or len(point) >= len(best[0]))):
            options = (*words[5].split(","), *own[2].split(","))
            best = (point, own[0], _unescape(own[1]), options)
        if known:
            break
    if best is None:
        raise VolumeError(
            f"got no mount that holds {path}, expected one",
            reason="missing",
            hint="is /proc there?",
        )
    point, kind, source, options = best
    locks, reason = _locks(kind, source, options)
    return Mount(point, kind, source, options, locks, reason, _atomic(kind, source))


def require_atomic(mount: Mount) -> None:
    """Insist that the filesystem can be published on.

    Raises:
        VolumeError: a rename of a directory is not atomic there.
    """
    if not mount.atomic:
        raise VolumeError(
            f"got the volume on {mount.type} ({mount.source}), expected a filesystem that renames "
            "directories at once",
            reason="no-atomic-rename",
            hint="an object store behind FUSE can be read, but not filled; fill a volume on NFS, "
            "Lustre, CephFS or a disk",
        )


def _locks(kind: str, source: str, options: tuple[str, ...]) -> tuple[Locks, str]:  # noqa: PLR0911 - one return per filesystem reads best
    if kind in ("nfs", "nfs4"):
        return _nfs(options)
    if kind == "lustre":
        if "flock" in options:
            return "shared", "Lustre with flock"
        if "localflock" in options:
            return "node", "Lustre with localflock"
        return "none", "Lustre without flock"
    if kind in ("cifs", "smb3"):
        if "nobrl" in options or "nolock" in options:
            return "node", "SMB with nobrl"
        return "none", "SMB, whose locks keep others from reading who holds them"
    if kind.lower() in _SHARED:
        return "shared", f"{kind} keeps locks on its servers"
    if kind.startswith("fuse"):
        return "node", f"{kind} ({source}) keeps locks in this node's kernel"
    if kind in _LOCAL:
        return "shared", f"{kind} is on this node alone"
    return "unknown", f"nothing is known about locks on {kind}"


def _nfs(options: tuple[str, ...]) -> tuple[Locks, str]:
    version = next((o.partition("=")[2] for o in options if o.startswith("vers=")), "")
    local = next((o.partition("=")[2] for o in options if o.startswith("local_lock=")), "none")
    if version.startswith("4"):  # which ignores local_lock
        return "shared", f"NFS {version}"
    if "nolock" in options:
        return "node", f"NFS {version} with nolock"
    if local in ("all", "posix"):
        return "node", f"NFS {version} with local_lock={local}"
    return "shared", f"NFS {version} with its lock manager"


def _number(path: str) -> str:
    """Return the kernel's number of the mount a directory is on; empty where it does not say."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as f:
                lines = dict(line.split(":", 1) for line in f if ":" in line)
        finally:
            os.close(descriptor)
        return lines.get("mnt_id", "").strip()
    return ""


def _atomic(kind: str, source: str) -> bool:
    if not kind.startswith("fuse"):
        return True
    # The program is named in the kind, fuse.NAME; where it is not, it mounts under its own name.
    program = kind.partition(".")[2] or source
    return not _OBJECT_STORES.fullmatch(program)


def _unescape(text: str) -> str:
    """Undo the octal escapes of space, tab, newline and backslash."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
