"""What this container may use: CPUs it is pinned to or limited to, and memory."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

_CGROUP: Final = "/sys/fs/cgroup"


def cpus(cgroup: str = _CGROUP) -> int:
    """Count the CPUs that may be kept busy; at least one.

    Args:
        cgroup: where the container's own control group is mounted, of version 2 or 1.
    """
    pinned = len(os.sched_getaffinity(0))
    limit = _limit(cgroup)
    return pinned if limit is None else max(1, min(pinned, limit))


def memory(cgroup: str = _CGROUP) -> int:
    """Read the limit on memory in bytes; `sys.maxsize` where there is none.

    Args:
        cgroup: as for `cpus`.
    """
    for name in ("memory.max", os.path.join("memory", "memory.limit_in_bytes")):
        with (
            contextlib.suppress(OSError, ValueError),
            open(os.path.join(cgroup, name), encoding="ascii") as f,
        ):
            return int(f.read())
    return sys.maxsize


def free(cgroup: str = _CGROUP) -> int:
    """Tell how many bytes of memory may still be used here: by the limit, and by what the node has.

    Args:
        cgroup: as for `cpus`.
    """
    available = 0
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as f:
        for line in f:
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) << 10
    return min(available, memory(cgroup))


def _limit(cgroup: str) -> int | None:
    """Read a CPU limit, in whole CPUs; None where there is none."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(os.path.join(cgroup, "cpu.max"), encoding="ascii") as f,
    ):
        quota, period = f.read().split()
        return int(quota) // int(period)
    try:
        with (
            open(os.path.join(cgroup, "cpu", "cpu.cfs_quota_us"), encoding="ascii") as quota_file,
            open(os.path.join(cgroup, "cpu", "cpu.cfs_period_us"), encoding="ascii") as period_file,
        ):
            limit = int(quota_file.read()) // int(period_file.read())
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return limit if limit >= 0 else None
