"""Kernels that are not what was sealed, or that were sealed so that nobody can restore them.

They go to quarantine, whole as they are: the next fill takes another number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from warmer.fill import publish, restore

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmer.layout import Volume, WarmDir
    from warmer.model import Held, Key
    from warmer.trust import Trust

_log = structlog.get_logger(__name__)
READ: Final = ("sealed", "stale")
"""Verdicts on what is restored, or built upon."""


def set_aside(
    volume: Volume,
    warm: WarmDir,
    key: Key,
    look: Callable[[], Held],
    *,
    trust: Trust,
    unpacking: bool,
) -> None:
    """Move the newest generations aside until one is sound, under the key's grant.

    Args:
        volume: where they are.
        warm: where one is unpacked for a try.
        key: of the piece.
        look: judges what is there now: another pod may have been here before.
        trust: whose kernels count.
        unpacking: whether to try as well if they can be unpacked.

    Raises:
        VolumeError: the volume or the warm dir failed.
    """
    while (held := look()).verdict in READ:  # what is older may be of the same writer
        number = held.generation
        if restore.intact(volume, key, number) and (
            not unpacking
            or held.restored
            or restore.unpacks(volume, warm, key, number, trust=trust)
        ):
            return
        place = publish.quarantine(volume, key, number)
        _log.warning("quarantined", kind=key.kind, key=key.short, place=place)
