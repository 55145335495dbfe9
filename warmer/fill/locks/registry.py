"""The lock asked for → a lock that works here; only its mechanism is imported.

``file`` is checked against the volume's mount first. Where locks of that mount exclude nobody,
a lock would be a pretence: tickets bound the double work instead, and the log says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from warmer.observe import inventory, mount

if TYPE_CHECKING:
    from warmer.fill.locks import Lock
    from warmer.layout import Volume
    from warmer.urls import LockUrl

_log = structlog.get_logger(__name__)


def open_lock(url: LockUrl, *, volume: Volume, me: str) -> Lock:
    """Choose a mechanism.

    Args:
        url: what the user asked for.
        volume: the volume it is about.
        me: how this process is named to waiters.

    Raises:
        VolumeError: the volume cannot be filled at all.
        LockError: the lock's service failed or refused, or cannot keep a lock.
    """
    found = mount.find(volume.root)
    mount.require_atomic(found)
    node = inventory.boot()
    if url.mechanism == "file":
        if found.locks in ("node", "none"):
            from warmer.fill.locks.tickets import Tickets  # noqa: PLC0415 - pay for one mechanism

            _log.warning(
                "locks on this volume exclude no other node: pods may do work twice",
                mount=found.point,
                why=found.reason,
                hint="use --lock k8s://namespace/prefix or s3://bucket/prefix",
            )
            return Tickets(volume, me=me, node=node, lease=url.lease)
        from warmer.fill.locks.file import FileLock  # noqa: PLC0415 - as above

        if found.locks == "unknown":
            _log.warning(
                "cannot tell whether locks on this volume exclude other nodes",
                mount=found.point,
                why=found.reason,
                hint="run `warmer doctor --join` on two nodes",
            )
        return FileLock(volume, me=me, node=node, lease=url.lease)
    from warmer.fill.locks.lease import LeaseLock, Register  # noqa: PLC0415 - as above

    register: Register
    if url.mechanism == "k8s":
        from warmer.fill.locks.kubernetes import KubernetesRegister  # noqa: PLC0415 - as above

        register = KubernetesRegister(url.place, url.prefix)
    else:
        from warmer.fill.locks.s3 import S3Register  # noqa: PLC0415 - as above

        register = S3Register(url.place, url.prefix)
    return LeaseLock(register, me=me, node=node, lease=url.lease)
