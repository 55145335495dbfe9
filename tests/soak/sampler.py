"""What is left lying about: files, bytes, descriptors, locks, processes, counted from outside."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import NamedTuple

import aging
import runs


class Where(NamedTuple):
    """What a soak is looked at through.

    Attributes:
        place: the volume and the top that every process of the soak has in its command line.
        warm: the pods' warm dirs.
        temporary: what the pods have as /tmp.
        living: the process ids of what runs from the beginning to the end.
    """

    place: runs.Place
    warm: list[str]
    temporary: list[str]
    living: list[int]


def sample(where: Where) -> dict[str, int]:
    """Count once. Nothing should be under way."""
    v1 = f"{where.place.volume}/v1"
    volume, warm = _tree(where.place.volume), [_tree(top) for top in where.warm]
    locks = runs.listing(f"{v1}/locks")
    orphans, zombies = _children(where.living)
    records = runs.listing(f"{v1}/uses")
    left = sum(_old(f"{v1}/uses/{name}") for name in records)
    young = (
        len(records) - left
    )  # one for each pod since the last gc: they follow the rate of starts
    return {
        "volume_files": volume[0] - young,
        "volume_kb": volume[1] // 1024,
        "warm_files": sum(files for files, _ in warm),
        "warm_kb": sum(size for _, size in warm) // 1024,
        "temporary_files": sum(_tree(top)[0] for top in where.temporary),
        "home_files": _tree(f"{where.place.top}/home")[0],
        "locks": len(locks),
        "locks_held": sum(runs.locked(f"{v1}/locks/{name}") for name in locks),
        "uses_left": left,
        "staged": len(where.place.staged()),
        "trash": len(runs.listing(f"{v1}/trash")),
        "taken": len(runs.listing(f"{v1}/taken")),
        "crashes": len(runs.listing(f"{v1}/crashes")),
        "quarantined": len(runs.listing(f"{v1}/quarantine")),
        "fds": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in where.living),
        "rss_kb": sum(_status(pid, "VmRSS") for pid in where.living),
        "threads": sum(_status(pid, "Threads") for pid in where.living),
        "processes": len(runs.processes(where.place.top)),
        "orphans": orphans,
        "zombies": zombies,
    }


def _old(path: str) -> bool:
    """Whether a gc should have removed this: days pass only before one."""
    with suppress(FileNotFoundError):
        return time.time() - os.stat(path).st_mtime > aging.DAY
    return False


def _tree(top: str) -> tuple[int, int]:
    """Count what is below a directory, and its bytes."""
    files = size = 0
    for directory, names, others in os.walk(top):
        for name in (*names, *others):
            with suppress(FileNotFoundError):
                info = os.lstat(os.path.join(directory, name))
                files, size = files + 1, size + info.st_blocks * 512
    return files, size


def _status(pid: int, field: str) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as stream:
        return next(int(line.split()[1]) for line in stream if line.startswith(f"{field}:"))


def _children(living: list[int]) -> tuple[int, int]:
    """Count what was left to this process, which adopts orphans, and the dead of `living` alone.

    Orphans that are dead are buried: in a container the end of its first process would have.
    """
    orphans = zombies = 0
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError, ChildProcessError), open(f"/proc/{pid}/stat", "rb") as stream:
            state, parent = stream.read().rpartition(b")")[2].split()[:2]
            if int(parent) in living:
                zombies += state == b"Z"
            elif int(parent) == os.getpid() and pid not in living:
                orphans += state != b"Z"
                if state == b"Z":
                    os.waitpid(pid, os.WNOHANG)
    return orphans, zombies
